"""Where trials run: in a process of this machine or over Ray Tune. May import the driver."""
