"""Ray cluster of three logical nodes on this machine, which loses a node or its head when standard input says so."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start the cluster and print its address; do what the first line of input says, and stop at the input's end."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    try:
        command = sys.stdin.readline().strip()
        if command == "remove":
            cluster.remove_node(nodes[0], allow_graceful=False)
            cluster.add_node(num_cpus=1)
            print("removed", flush=True)
        elif command == "kill head":
            head = cluster.head_node
            assert head is not None
            head.kill_gcs_server(check_alive=False)
            print("killed", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
