"""Where trials run: in a process of this machine or over Ray. May import the driver."""
