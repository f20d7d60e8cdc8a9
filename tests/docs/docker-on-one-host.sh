#!/bin/sh
# Stands in for `docker` on a host that shares one real Docker with the others: names of containers and volumes get the
# host's name behind them, and a container gets the host's address on a network of their own instead of published ports.
set -eu
own() { echo "$1" | sed "s/^etcd\$/etcd-$HOST_NAME/; s/^etcd-data\(:.*\)\{0,1\}\$/etcd-data-$HOST_NAME\1/"; }

seen_container=
count=$#
while [ "$count" -gt 0 ]; do
    argument=$1
    shift
    count=$((count - 1))
    case $argument in
    -p) shift; count=$((count - 1)); continue ;;
    --volume=*) argument=--volume=$(own "${argument#--volume=}") ;;
    keelson) argument=$HOST_IMAGE ;;
    etcd | etcd-data) [ -n "$seen_container" ] || { argument=$(own "$argument"); seen_container=yes; } ;;
    esac
    set -- "$@" "$argument"
done
if [ "$1" = run ]; then
    shift
    set -- run --network "$HOST_NETWORK" --ip "$HOST_ADDRESS" "$@"
fi
case $1 in
ps) "$HOST_DOCKER" "$@" --filter "name=^etcd-$HOST_NAME\$" ;;
volume) [ "$2" = rm ] || set -- "$@" --filter "name=etcd-data-$HOST_NAME"; "$HOST_DOCKER" "$@" ;;
*) exec "$HOST_DOCKER" "$@" ;;
esac | sed "s/-$HOST_NAME//g; s|$HOST_IMAGE|keelson|"
