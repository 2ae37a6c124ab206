"""Pure rules of the read model: facts, the state they amount to, and the words for them."""
