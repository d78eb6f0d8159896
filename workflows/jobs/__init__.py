"""Ray Jobs: any verb on a cluster, followed until it ends."""
