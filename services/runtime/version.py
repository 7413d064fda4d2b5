"""Which Preceptor this is. The package is built with it, and containers, which run from a folder, have nothing else."""

VERSION = "0.1.0"
