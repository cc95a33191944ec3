"""`python -m pdopt`: the command line without an installed script."""

from pdopt.cli.app import main

if __name__ == "__main__":
    main()
