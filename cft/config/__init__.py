"""What a job is: typed keys and their rules, composed from YAML and the command line, and sweeps over them."""
