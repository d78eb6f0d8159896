"""Image and phrase -> box -> part mask: the pseudo-labels that training follows."""
