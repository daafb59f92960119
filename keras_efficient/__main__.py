"""`python -m keras_efficient` runs the command line."""

from keras_efficient.cli import main

if __name__ == "__main__":
    main()
