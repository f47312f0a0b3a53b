"""`python -m hf_relopt`: the same as the console script `hf-relopt`."""

from hf_relopt.cli.main import main

if __name__ == "__main__":
    main()
