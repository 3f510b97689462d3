"""Ray cluster of three logical nodes on this machine, one of which is removed when a line comes on standard input."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start the cluster and print its address; replace a node at the first line of input, stop at the input's end."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    try:
        if sys.stdin.readline():
            cluster.remove_node(nodes[0], allow_graceful=False)
            cluster.add_node(num_cpus=1)
            print("removed", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
