"""The manifold of rank-r matrices: points, tangent vectors, and the linear algebra of both."""
