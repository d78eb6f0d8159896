#!/bin/bash
# Real Slurm on one node or two, for the tests: slurm_nodes.sh FOLDER NODES COMMAND...
#
# Each node has namespaces of its own: a network in which its own name resolves to 127.0.1.1, as on
# Debian, a /tmp and a /dev/shm, and on the first node also the daemon of Slurm that schedules and
# COMMAND. Everything ends with COMMAND. Needs root, and slurm-wlm and munge of Debian. FOLDER, which
# all nodes share, must not be below /tmp.
set -euo pipefail

folder=$1 nodes=$2
shift 2

in_new_namespaces() {
    exec unshare --pid --net --uts --ipc --mount --fork --mount-proc --kill-child "$0" "$@"
}

enter_node() {  # NUMBER
    hostname "node$1"
    mount --make-rprivate /
    ip link set lo up
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    {
        echo "127.0.0.1 localhost"
        echo "127.0.1.1 node$1"
        echo "10.77.9.$((3 - $1)) node$((3 - $1))"
    } > "$folder/hosts$1"
    mount --bind "$folder/hosts$1" /etc/hosts
    export SLURM_CONF=$folder/slurm.conf
}

start_node() {  # NUMBER
    slurmd -N "node$1" 2> /dev/null
}

case "${ROLE:-}" in
"")
    mkdir -p "$folder"/{state,spool1,spool2,log}
    chmod 700 "$folder"
    ROLE=first in_new_namespaces "$folder" "$nodes" "$@"
    ;;
second)
    enter_node 2
    until ip link show right > /dev/null 2>&1; do sleep 0.1; done
    ip addr add 10.77.9.2/24 dev right
    ip link set right up
    until [ -e "$folder/started" ]; do sleep 0.1; done
    start_node 2
    exec sleep infinity
    ;;
first)
    enter_node 1
    head -c 1024 /dev/urandom > "$folder/key"
    chmod 400 "$folder/key"
    {
        echo "ClusterName=tests
SlurmctldHost=node1(10.77.9.1)
AuthInfo=socket=$folder/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=10
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0"
        for number in $(seq "$nodes"); do
            echo "NodeName=node$number NodeAddr=10.77.9.$number CPUs=2 RealMemory=6000"
        done
    } > "$folder/slurm.conf"
    rm -f "$folder/started"
    # A second network device, without which Slurm finds no address of its own.
    ip link add left type veth peer name right
    ip addr add 10.77.9.1/24 dev left
    ip link set left up
    if [ "$nodes" = 2 ]; then
        ROLE=second unshare --pid --net --uts --ipc --mount --fork --mount-proc --kill-child \
            "$0" "$folder" 2 &
        until [ "$(readlink "/proc/$!/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
        ip link set right netns $!
    else
        ip link set right up
    fi
    munged --force --key-file="$folder/key" --socket="$folder/munge" --seed-file="$folder/seed" \
        --pid-file="$folder/munge.pid" --log-file="$folder/log/munged" 2> /dev/null
    slurmctld 2> /dev/null
    touch "$folder/started"
    start_node 1
    for _ in $(seq 200); do
        [ "$(sinfo -h -N -t idle -o %t 2> /dev/null | wc -l)" = "$nodes" ] && break
        sleep 0.1
    done
    exec "$@"
    ;;
esac
