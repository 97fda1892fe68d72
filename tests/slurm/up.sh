#!/usr/bin/env bash
# A private SLURM on this machine for the tests, in one folder: two fake nodes of 8 fake A100 and 64 CPUs.
#   up.sh FOLDER up PORT PORT PORT   install what is missing, write the configuration, start; free ports
#                                  exit status 3: it cannot be installed
#   up.sh FOLDER down                end the daemons it started, and their jobs
# Nodes, CPUs and memory are bookkeeping: nothing is confined. Needs root, as slurmd does.
set -euo pipefail
folder=$1
export SLURM_CONF=$folder/slurm.conf

if [ "$2" = down ]; then
    timeout 10 scancel --quiet --user=root || true
    timeout 10 scancel --quiet --user=root --signal=KILL --full || true # batch scripts wait for it
    for _ in {1..100}; do [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
    for daemon in slurmd.n0 slurmd.n1 slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        signal=TERM
        for ((try = 0; try < 60; try++)); do
            grep -qs "${daemon%.*}" "/proc/$pid/cmdline" || break
            ((try < 50)) || signal=KILL
            kill -s "$signal" "$pid" || break
            sleep 0.1
        done
    done
    exit
fi

for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null && continue
    apt-get update -qq || exit 3
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge || exit 3
done
mkdir -p "$folder"/{state,n0,n1}
chmod 755 "$folder"
host=$(hostname -s)
for gpu in {0..7}; do mknod -m 666 "$folder/gpu$gpu" c 1 3; done # gres wants devices: /dev/null again
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
at="NodeHostname=$host NodeAddr=127.0.0.1"
node="$at CPUs=64 CoresPerSocket=64 RealMemory=512000 Gres=gpu:a100:8"
# cred_expire is also how long a requeued job waits. No cgroups, no systemd: linuxproc, task/none.
cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$3
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
MaxArraySize=1001
KillWait=10
MinJobAge=3600
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n0 Port=$4 $node
NodeName=n1 Port=$5 $node
PartitionName=normal Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=ALL PriorityTier=100 PreemptMode=OFF
CONF
printf 'AutoDetect=off\nNodeName=n[0-1] Name=gpu Type=a100 File=%s/gpu[0-7]\n' "$folder" >"$folder/gres.conf"
printf 'CgroupPlugin=cgroup/v1\nIgnoreSystemd=yes\n' >"$folder/cgroup.conf"

munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
for name in n0 n1; do slurmd -N "$name"; done
for _ in {1..200}; do
    [ "$(timeout 5 sinfo -h -N -p normal -t idle -o %N 2>/dev/null | wc -l)" = 2 ] && exit
    sleep 0.1
done
sinfo >&2 || true
tail -n 20 "$folder"/slurm*.log >&2
exit 1
