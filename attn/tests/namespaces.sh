#!/usr/bin/env bash
# A command on several processes, each in a network namespace with an address of its own, as on machines of their own: over TCP, with a
# network of the rate, delay and loss that are asked for. Needs Linux, root, iproute2 and Open MPI, and for delay and loss the kernel's
# netem; where that is missing, tbf limits the rate and nftables (if installed) loses packets.
#
#     attn/tests/namespaces.sh COUNT [rate 1gbit] [delay 1ms] [loss 1%] -- COMMAND [ARGUMENT...]
set -euo pipefail

count=$1
shift
network=()
while [ "$1" != -- ]; do network+=("$1"); shift; done
shift

prefix=attn$$
space=$(mktemp -d)
# Taken down with the namespaces, whatever happens.
cleanup() {
    for i in $(seq "$count"); do ip netns del "$prefix-$i" 2>/dev/null || true; done
    rm -rf "$space"
}
trap cleanup EXIT

# Limits what a namespace sends.
limit() {
    local namespace=$1 tc="ip netns exec $1 tc qdisc add dev mpi0 root"
    shift
    [ $# -gt 0 ] || return 0
    ! $tc netem limit 100000 "$@" 2>/dev/null || return 0
    while [ $# -gt 0 ]; do
        case $1 in
            rate) $tc tbf rate "$2" burst 128kb latency 100ms ;;
            loss)
                ip netns exec "$namespace" nft -f - <<NFT
table inet lossy { chain out { type filter hook output priority 0;
    oifname mpi0 numgen random mod 10000 < $(awk "BEGIN { print int(100 * ${2%\%}) }") drop
    }
}
NFT
                ;;
            *) echo "$1 needs the kernel's netem" >&2; exit 1 ;;
        esac
        shift 2
    done
}

# A bridge in the place of a switch, on the side of the first namespace.
hosts=()
for i in $(seq "$count"); do
    ip netns add "$prefix-$i"
    ip -n "$prefix-$i" link set lo up
done
ip -n "$prefix-1" link add switch type bridge
ip -n "$prefix-1" link set switch up
for i in $(seq "$count"); do
    ip -n "$prefix-1" link add "port$i" type veth peer name mpi0 netns "$prefix-$i"
    ip -n "$prefix-1" link set "port$i" master switch up
    ip -n "$prefix-$i" addr add "10.213.7.$i/24" dev mpi0
    ip -n "$prefix-$i" link set mpi0 up
    limit "$prefix-$i" "${network[@]}"
    hosts+=("10.213.7.$i")
done

# In the place of ssh: what Open MPI starts on a host runs in its namespace, under a name of its own.
cat > "$space/agent" <<AGENT
#!/usr/bin/env bash
address=\$1
shift
exec ip netns exec "$prefix-\${address##*.}" unshare --uts sh -c "hostname node\${address##*.}; \$*"
AGENT
chmod +x "$space/agent"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
list=$(IFS=,; echo "${hosts[*]}")
ip netns exec "$prefix-1" unshare --uts sh -c 'hostname node1; exec "$@"' sh \
    mpirun -np "$count" --host "$list" --map-by node --bind-to none --mca plm_rsh_agent "$space/agent" \
    --mca btl tcp,self --mca btl_tcp_links 2 --mca pml ob1 --mca btl_tcp_if_include 10.213.7.0/24 --mca oob_tcp_if_include 10.213.7.0/24 \
    ${RAYON_NUM_THREADS:+-x RAYON_NUM_THREADS} ${CANDLE_NUM_THREADS:+-x CANDLE_NUM_THREADS} "$@"
