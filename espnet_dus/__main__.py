"""`python -m espnet_dus COMMAND`: the same as `espnet-dus COMMAND`."""

from espnet_dus.app.cli import main

if __name__ == "__main__":
    main()
