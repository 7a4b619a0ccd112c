"""Every strategy of the installed Flower: bit-identical until a request, forgets, stays forgotten."""
