"The command line as `python -m spot_artifacts`."
from .cli import main

if __name__ == '__main__': main()
