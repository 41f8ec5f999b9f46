"""Parts of the programs beside this folder that measure one thing each: a folder for a program."""
