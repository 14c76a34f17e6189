# Sourced by scripts for sbatch that have the options --signal=TERM@300, --requeue and --open-mode=append.

# run_step COMMAND...: runs the command as the tasks of a step, and exits with its code.
#
# Slurm sends SIGTERM to the tasks five minutes before the time limit, and when the job is preempted or cancelled. They
# save what they have done and end with code 143. Unless it was cancelled, the job is then put back into the queue, where
# the same command resumes.
run_step() {
    local code=0
    # Tasks end each other when one of them fails (optiml_jax/common/distributed.py). Slurm must not kill those that
    # still save because another one has ended.
    srun --kill-on-bad-exit=0 --wait=300 "$@" || code=$?
    # A job that is being preempted counts as failed if it ends before Slurm requeues it.
    if [ "$code" = 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
        echo "stopped by the time limit or a preemption; requeued"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
