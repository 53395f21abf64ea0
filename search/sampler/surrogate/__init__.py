"""What is believed of policies that were not tried: damage, costs, objectives."""
