"""The command line: parse, call the library, print, and answer with an exit status."""
