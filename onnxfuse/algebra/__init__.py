"""The algebra: affine, shift-equivariant maps and the laws that join them."""
