"""Music: pieces on a grid of 16ths, their readers and writers, and the tasks made of them."""
