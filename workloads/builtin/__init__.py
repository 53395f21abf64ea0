"""The `digits` workloads and their networks. May import what `workloads/` shares."""
