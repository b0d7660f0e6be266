"""What a neuron and a surrogate are, and the catalogues of both."""
