"""Command line of lm-evaluation-harness, extended by --model optiml.

python -m optiml_jax.harness --model optiml --model_args pretrained=runs/tiny,batch_rows=16 --tasks arc_easy \
    --output_path results --log_samples
"""

from optiml_jax.common.errors import UserError, exit_on_user_error
from optiml_jax.common.programs import use_cache


@exit_on_user_error
def main() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed; pip install 'optiml-jax[lm-eval]'") from None
    use_cache()
    from optiml_jax.harness import model  # noqa: F401 - registers "optiml"

    cli_evaluate()


if __name__ == "__main__":
    main()
