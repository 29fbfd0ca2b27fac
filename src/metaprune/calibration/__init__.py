"""What activations say about a network: statistics of what its operators consume, and weights solved anew after a cut.

Label-free: nothing here reads a target.
"""
