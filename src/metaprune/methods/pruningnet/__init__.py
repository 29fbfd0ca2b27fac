"""PruningNet (MetaPruning, ICCV 2019): generated weights for any structure, and a search with them."""
