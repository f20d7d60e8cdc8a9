#!/bin/sh
# Stands in for `docker` on a host that is only a network namespace: as much of it as the tutorial uses. What a container
# leaves behind is in $HOST_HOME, the programs are in $HOST_BINARIES.
set -eu
inside_host() { ip netns exec "$HOST_NAMESPACE" "$@"; }
status() { cat "$HOST_HOME/$1/status" 2> /dev/null || { echo "Error: No such container: $1" >&2; exit 1; }; }
# Writes the fields that a --format names, from variables called like them.
format() {
    echo "$1" | sed "s|{{.Names}}|${Names:-}|; s|{{.Name}}|${Name:-}|; s|{{.Image}}|${Image:-}|; s|{{.Status}}|${Status:-}|"
}

what=$1
shift
case $what in
run)
    while true; do
        case $1 in
        -d) shift ;;
        -p) shift 2 ;;
        --name) name=$2; shift 2 ;;
        --volume=*) volume=${1#--volume=}; shift ;;
        -*) echo "unknown flag: $1" >&2; exit 125 ;;
        *) break ;;
        esac
    done
    image=$1 program=$HOST_BINARIES/${2##*/}
    shift 2
    container=$HOST_HOME/$name data=$HOST_HOME/volumes/${volume%%:*}
    if [ -e "$container" ]; then
        echo "docker: Error response from daemon: Conflict. The container name \"/$name\" is already in use." >&2
        exit 125
    fi
    mkdir -p "$container" "$data"
    # The arguments say where the volume is inside of the container.
    for argument in "$@"; do
        shift
        set -- "$@" "$(echo "$argument" | sed "s|=${volume#*:}\$|=$data|")"
    done
    echo "$image" > "$container/image"
    echo running > "$container/status"
    (
        inside_host "$program" "$@" > "$container/log" 2>&1 && status=0 || status=$?
        echo "$status" > "$container/status.new"
        mv "$container/status.new" "$container/status"
    ) < /dev/null > /dev/null 2>&1 &
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
    echo
    ;;
exec)
    variables=
    while true; do
        case $1 in
        -e) variables="$variables $2"; shift 2 ;;
        -i | -t | -it) shift ;;
        *) break ;;
        esac
    done
    [ "$(status "$1")" = running ] || { echo "Error: container $1 is not running" >&2; exit 1; }
    shift
    [ "$1" != bin/sh ] || { shift; set -- sh "$@"; }
    # shellcheck disable=SC2086 # one word per variable
    inside_host env PATH="$HOST_BINARIES:$PATH" $variables "$@"
    ;;
logs)
    status "$1" > /dev/null
    cat "$HOST_HOME/$1/log"
    ;;
wait)
    while [ "$(status "$1")" = running ]; do sleep 0.1; done
    status "$1"
    ;;
rm)
    [ "$(status "$1")" != running ] || { echo "Error: stop the container before removing it" >&2; exit 1; }
    rm -r "${HOST_HOME:?}/$1"
    echo "$1"
    ;;
ps)
    for container in "$HOST_HOME"/*/status; do
        [ "$(cat "$container")" = running ] || continue
        container=$(dirname "$container")
        Names=$(basename "$container") Image=$(cat "$container/image") Status='Up 2 seconds'
        format "$2"
    done
    ;;
volume)
    case $1 in
    ls) for Name in "$HOST_HOME"/volumes/*; do Name=$(basename "$Name"); format "$3"; done ;;
    rm) rm -r "${HOST_HOME:?}/volumes/$2" && echo "$2" ;;
    esac
    ;;
*)
    echo "docker: '$what' is not a command that the tutorial needs" >&2
    exit 1
    ;;
esac
