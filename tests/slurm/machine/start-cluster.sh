#!/usr/bin/env bash
# A real Slurm on one Linux machine, for tests.  Idempotent.
#   MODE=netns (root): every node has its own network, UTS, PID and mount namespace:
#        own IP, own hostname, own /dev/shm, own "local NVMe" ($ROOT/local), and no
#        route to anywhere.  `node.sh crash N` = power cut.
#   MODE=plain: several `slurmd -N` on 127.0.0.1, distinct ports; needs no root.
# Env: MODE NODES GPUS ROOT KILLWAIT; afterwards run clients with  $ROOT/bin/s <cmd>
# shellcheck disable=SC2016  # $1 and $2 in single quotes belong to the bash inside the namespaces
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MODE=${MODE:-netns}; NODES=${NODES:-2}; GPUS=${GPUS:-2}; KILLWAIT=${KILLWAIT:-5}
PROCTRACK=${PROCTRACK:-linuxproc}    # cgroup (real clusters; needs cgroup v1 freezer here) | linuxproc | pgid: they deliver signals differently!
ROOT=${ROOT:-/tmp/slurm-ci}; NET=${NET:-10.231.77}; PFX=${PFX:-sci}; DEBUG=${DEBUG:-info}
say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

# ---- packages ---------------------------------------------------------------
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  SUDO=""; [ "$(id -u)" = 0 ] || SUDO=sudo
  $SUDO apt-get update -qq
  $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      slurmctld slurmd slurm-client munge iproute2 >/dev/null
  say "packages installed"
fi
# the distribution's own units must not run beside ours
"$HERE/stop-cluster.sh" >/dev/null 2>&1 || true

# ---- files ------------------------------------------------------------------
mkdir -p "$ROOT"/{etc,run,log,state,spool,local,bin}; chmod 755 "$ROOT" "$ROOT"/*
rm -rf "${ROOT:?}"/state/* "$ROOT"/spool/* "$ROOT"/log/* "$ROOT"/run/*
USER_=$(id -un)
if [ "$MODE" = netns ]; then
  [ "$(id -u)" = 0 ] || { echo "MODE=netns needs root"; exit 1; }
  CTLHOST=${PFX}-ctl; CTLADDR=$NET.1; COMM="# (own network: daemons may listen on all of it)"
else
  CTLHOST=$(hostname -s); CTLADDR=127.0.0.1
  COMM="CommunicationParameters=NoCtldInAddrAny,NoInAddrAny    # listen on 127.0.0.1 only"
fi
NODELINES=""; HOSTS="127.0.0.1 localhost"$'\n'; [ "$MODE" = netns ] && HOSTS+="$CTLADDR $CTLHOST"$'\n'
for i in $(seq 1 "$NODES"); do
  n=${PFX}-node$i
  if [ "$MODE" = netns ]; then
    NODELINES+="NodeName=$n NodeAddr=$NET.$((10+i))"$'\n'; HOSTS+="$NET.$((10+i)) $n"$'\n'
  else
    NODELINES+="NodeName=$n NodeHostname=$CTLHOST NodeAddr=127.0.0.1 Port=$((16820+i))"$'\n'
  fi
  mkdir -p "$ROOT/spool/$n"
  for g in $(seq 0 $((GPUS-1))); do   # fake GPUs: character devices that Slurm can count
    [ -e "$ROOT/etc/gpu$g" ] || mknod "$ROOT/etc/gpu$g" c 1 3 2>/dev/null || : > "$ROOT/etc/gpu$g"
  done
done
sed -e "s|@CTLHOST@|$CTLHOST|; s|@CTLADDR@|$CTLADDR|; s|@CTLPORT@|${CTLPORT:-16817}|; s|@DPORT@|${DPORT:-16818}|" \
    -e "s|@FIRST@|$(( ($(date +%s) % 90000) + 1000 ))|" -e "s|@COMM@|$COMM|; s|@PROCTRACK@|proctrack/$PROCTRACK|" -e "s|@ROOT@|$ROOT|g; s|@USER@|$USER_|; s|@DEBUG@|$DEBUG|; s|@KILLWAIT@|$KILLWAIT|; s|@GPUS@|$GPUS|" \
    "$HERE/slurm.conf.in" | awk -v L="$NODELINES" '/^@NODELINES@$/{printf "%s",L;next}{print}' > "$ROOT/etc/slurm.conf"
if [ "$GPUS" -gt 0 ]; then echo "Name=gpu File=$ROOT/etc/gpu[0-$((GPUS-1))]"; fi > "$ROOT/etc/gres.conf"
printf '%s' "$HOSTS" > "$ROOT/etc/hosts"
echo 'hosts: files' > "$ROOT/etc/nsswitch.conf"      # no DNS inside: no resolver time-outs
# slurmd always loads a cgroup plugin. "disabled" exists from 24.05 on; 22.05 dies of the word.
ver=$(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -1)
if [ "$PROCTRACK" = cgroup ]; then echo "CgroupPlugin=${CGROUP_PLUGIN:-cgroup/v1}"
elif [ "$(printf '%s\n24.05\n' "$ver" | sort -V | head -1)" = 24.05 ]; then echo CgroupPlugin=disabled
elif [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then echo IgnoreSystemd=yes    # untested: Ubuntu 24.04 (23.11)
fi > "$ROOT/etc/cgroup.conf"
[ -s "$ROOT/etc/munge.key" ] || { umask 077; dd if=/dev/urandom of="$ROOT/etc/munge.key" bs=1 count=128 status=none; umask 022; }
export SLURM_CONF=$ROOT/etc/slurm.conf

# ---- munge ------------------------------------------------------------------
/usr/sbin/munged --force --key-file="$ROOT/etc/munge.key" --socket="$ROOT/run/munge.socket" \
   --pid-file="$ROOT/run/munged.pid" --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munged.seed" --num-threads=2
say "munged up"

# ---- network + daemons ------------------------------------------------------
node_up() {  # $1 = index
  local n=${PFX}-node$1
  if [ "$MODE" = netns ]; then
    # own UTS (hostname), PID (crashable as one) and mount (/dev/shm, "NVMe", /etc/hosts) namespaces
    # PID 1 of the node is a bash that reaps orphans (slurmd itself does not: zombies would pile up)
    setsid nsenter --net="/run/netns/$n" unshare --uts --pid --fork --kill-child --mount --mount-proc \
      /bin/bash -c 'hostname "$1"; mount --bind "$2/etc/hosts" /etc/hosts; mount --bind "$2/etc/nsswitch.conf" /etc/nsswitch.conf
        mount -t tmpfs tmpfs "$2/local"; mount -t tmpfs -o mode=1777 tmpfs /dev/shm
        trap "kill \$d" TERM; /usr/sbin/slurmd -D -N "$1" -f "$2/etc/slurm.conf" & d=$!; wait $d; wait $d' _ "$n" "$ROOT" \
      </dev/null >>"$ROOT/log/slurmd-$n.out" 2>&1 &
    echo $! > "$ROOT/run/node-$n.pid"
  else
    setsid /usr/sbin/slurmd -D -N "$n" -f "$ROOT/etc/slurm.conf" </dev/null >>"$ROOT/log/slurmd-$n.out" 2>&1 &
    echo $! > "$ROOT/run/node-$n.pid"
  fi
}
if [ "$MODE" = netns ]; then
  ip netns add "$PFX-ctl"; ip -n "$PFX-ctl" link set lo up
  ip -n "$PFX-ctl" link add br0 type bridge; ip -n "$PFX-ctl" addr add "$NET.1/24" dev br0; ip -n "$PFX-ctl" link set br0 up
  for i in $(seq 1 "$NODES"); do
    n=$PFX-node$i; ip netns add "$n"; ip -n "$n" link set lo up
    ip -n "$PFX-ctl" link add "p$i" type veth peer name eth0 netns "$n"
    ip -n "$PFX-ctl" link set "p$i" master br0 up
    ip -n "$n" addr add "$NET.$((10+i))/24" dev eth0; ip -n "$n" link set eth0 up
  done
  say "namespaces up"
  ENTER=(nsenter --net="/run/netns/$PFX-ctl" unshare --uts --mount /bin/bash -c 'hostname "$1"; mount --bind "$2/etc/hosts" /etc/hosts; mount --bind "$2/etc/nsswitch.conf" /etc/nsswitch.conf; shift 2; exec "$@"' _ "$CTLHOST" "$ROOT")
else
  ENTER=()
fi
declare -f node_up > "$ROOT/run/node_up.sh"; declare -p MODE PFX ROOT NET > "$ROOT/run/vars.sh"
setsid "${ENTER[@]}" /usr/sbin/slurmctld -D -f "$ROOT/etc/slurm.conf" </dev/null >>"$ROOT/log/slurmctld.out" 2>&1 &
echo $! > "$ROOT/run/ctl.pid"
for i in $(seq 1 "$NODES"); do node_up "$i"; done

# client wrapper: enters the controller's namespaces
{ echo '#!/usr/bin/env bash'; echo "export SLURM_CONF=$SLURM_CONF"
  if [ "$MODE" = netns ]; then
    echo "exec nsenter --net=/run/netns/$PFX-ctl unshare --uts --mount /bin/bash -c 'hostname \"\$1\"; mount --bind \"\$2/etc/hosts\" /etc/hosts; mount --bind \"\$2/etc/nsswitch.conf\" /etc/nsswitch.conf; shift 2; exec \"\$@\"' _ $CTLHOST $ROOT \"\$@\""
  else echo 'exec "$@"'; fi; } > "$ROOT/bin/s"; chmod +x "$ROOT/bin/s"

# ---- wait until all are idle ------------------------------------------------
for _ in $(seq 1 150); do
  [ "$("$ROOT/bin/s" sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$NODES" ] && { say "$NODES nodes idle"; exit 0; }
  sleep 0.2
done
echo "cluster did not come up; logs:"; tail -n 15 "$ROOT"/log/*; exit 1
