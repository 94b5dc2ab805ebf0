"""The command line: it parses arguments, calls the package, prints the result, and returns an exit status."""
