"""torchvision's models and data sets as workloads. May import what `workloads/` shares."""
