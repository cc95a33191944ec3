"""Parts of models that need the saddle step: mixtures of experts with balanced routers."""
