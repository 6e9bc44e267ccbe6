"""What a person sees while a run goes on. Readers of its events; the command line and the Python API share them."""
