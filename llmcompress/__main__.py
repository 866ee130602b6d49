"""`python -m llmcompress`: the command line."""

from llmcompress.cli import main

if __name__ == "__main__":
    main()
