"""A model class for lm-evaluation-harness: `--model optiml` (or `optiml_jax.harness.model.OptimlLM`).

Written for lm-eval 0.4.13. Prompts are tokenized as its Hugging Face backend does for OPT: one `</s>` first, and the
continuation's ids are those of the whole text after the context's. Requests share prefixes
(`inference/prefix_sharing.py`), so the harness's `batch_size` is not used: `batch_rows` is the number of rows computed
at once.
"""

import inspect
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from optiml_jax import chat
from optiml_jax.common.errors import UserError, check_known, nearest
from optiml_jax.common.settings import FROM_ZERO, WHOLE, Range, check
from optiml_jax.inference import ranking
from optiml_jax.inference.model import load_model
from optiml_jax.inference.placement import Axes
from optiml_jax.inference.precision import NAMES
from optiml_jax.inference.sampling import Sampling

NEW_TOKENS = 256  # for tasks without a limit, as in the harness's Hugging Face backend
DTYPES = {"auto": "auto", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"} | {name: name for name in NAMES}
SUPPORTED = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "num_beams"}  # of generation_kwargs


def _whole_number(name: str, value: int | str | None, limits: Range = WHOLE) -> int | None:
    """An argument that is a whole number, which the harness passes as a number or as text."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    return check(f"{name} in --model_args", number, int | None, limits)


@register_model("optiml")
class OptimlLM(TemplateLM):
    """An OPT model in the harness.

    Args:
      pretrained: source of `load_model`: a MODEL_DIR, a Hugging Face directory, a hub name, a metaseq checkpoint.
      batch_rows: rows computed at once; None: as many as memory allows.
      data, fsdp, tensor: axes of the mesh, which multiply to the number of devices; None as in `placement.Axes`. With 1
        for all of them, the model is on the first device.
      precision, tokenizer: as in `load_model`. `dtype` is the Hugging Face backend's name for the precision.
      seed: of tasks that sample.
    """

    def __init__(
        self,
        pretrained: str = "",
        batch_rows: int | None = None,
        data: int | None = None,
        fsdp: int | None = None,
        tensor: int | None = None,
        precision: str = "auto",
        tokenizer: str | None = None,
        seed: int = 1234,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **unknown: Any,
    ) -> None:
        """`batch_size`, `max_batch_size` and `device` are passed by the harness to every model and are ignored.

        Raises:
          UserError: an argument or its value is unknown.
        """
        super().__init__()
        for name in unknown:
            known = list(inspect.signature(OptimlLM).parameters)[:-1]
            raise UserError(f"--model_args: {name} is unknown{nearest(name, known)}; known: {', '.join(known)}")
        if not pretrained:
            raise UserError("--model_args: pretrained is missing; name the weights: pretrained=runs/tiny")
        sizes = {"batch_rows": batch_rows, "data": data, "fsdp": fsdp, "tensor": tensor}
        sizes = {name: _whole_number(name, value) for name, value in sizes.items()}
        if dtype is not None:
            check_known("dtype in --model_args", dtype := str(dtype).removeprefix("torch."), DTYPES)
            precision = DTYPES[dtype]
        axes = Axes(sizes["data"], sizes["fsdp"], sizes["tensor"])
        mesh = None if axes == Axes(1, 1, 1) else axes  # the first device
        self.model = load_model(pretrained, mesh=mesh, precision=precision, tokenizer=tokenizer)
        self.pretrained, self.batch_rows, self.seed = (
            pretrained,
            sizes["batch_rows"],
            _whole_number("seed", seed, FROM_ZERO),
        )

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        return self.model.config.max_positions

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, after one `</s>` unless `add_special_tokens` is False or the text starts with it."""
        ids = self.model.tokenizer.encode(string)
        leads = add_special_tokens is not False and self.model.leading_eos and ids[:1] != [self.eot_token_id]
        return [self.eot_token_id, *ids] if leads else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does, but apart where one token covers the end of the context and all of the continuation,
        which would then have no token to score."""
        before, answer = super()._encode_pair(context, continuation)
        if answer:
            return before, answer
        return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat in the form in which this project trains on conversations (`optiml_jax/chat.py`)."""
        return chat.prompt_of(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """A description of the template for the harness's results; None if no template is applied."""
        return None if chat_template is False else repr(chat.SPOKEN)

    def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
        return self.model.tokenizer.decode(tokens)

    def get_model_info(self) -> dict[str, Any]:
        """Metadata that the harness saves with its results."""
        return {"model_source": self.model.source, "model_fingerprint": self.model.fingerprint}

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        # A long request loses its start, including a leading </s>, as in the harness's own backends.
        pairs = [(before[-(self.max_length + 1 - len(answer)) :], answer) for _, before, answer in requests]
        names = [repr(context[-60:]) for (context, _), *_ in requests]
        scored = ranking.continuations(self.model, pairs, self.batch_rows, names)
        answers = [(continuation.score, continuation.greedy) for continuation in scored]
        for (texts, *_), answer in zip(requests, answers):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows with as much context as fits; each token is predicted once.

        Like the harness's own backend, this also predicts a text's leading `</s>`, after another one.
        """
        windows, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, context_len=1)
            for before, answer in map(make_disjoint_window, rolling):
                windows.append((list(before), list(answer)))
                owners.append(index)
        sums = [0.0] * len(requests)
        scored = ranking.continuations(self.model, windows, self.batch_rows)
        for index, continuation in zip(owners, scored, strict=True):
            sums[index] += continuation.score
        for request, total in zip(requests, sums):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generates up to the first of a request's `until`, `</s>`, or `max_gen_toks`.

        Greedily, or sampled where a task or --gen_kwargs say so, with `temperature` and `top_p`; repeats of a request
        are drawn independently of each other.

        Raises:
          UserError: a request asks for what is not supported, such as beam search.
        """
        prompts, limits, stops, sampling = [], [], [], []
        repeats: Counter[str] = Counter()
        for request in requests:
            prompt, given = request.args
            options = normalize_gen_kwargs(given, NEW_TOKENS)
            for name, value in options.items():
                if name not in SUPPORTED or (name == "num_beams" and value not in (None, 1)):
                    raise UserError(
                        f"{name}={value} is not supported, for {prompt[-60:]!r}; take it out of the task's "
                        "generation_kwargs or of --gen_kwargs"
                    )
            temperature = options.get("temperature", 1.0) if options["do_sample"] else 0.0
            index = zlib.crc32(f"{repeats[prompt]} {prompt}".encode())  # the same in any order of the requests
            repeats[prompt] += 1
            top_p = options.get("top_p")
            sampling.append(Sampling(float(temperature), 1.0 if top_p is None else float(top_p), self.seed, index))
            limits.append(options["max_gen_toks"])
            prompts.append(self.tok_encode(prompt)[-max(1, self.max_length - limits[-1]) :])
            stops.append([text for text in options["until"] if text])  # an empty one would end every answer
        names = [repr(request.args[0][-60:]) for request in requests]
        answers = self.model.generate_from_ids(prompts, limits, stops, self.batch_rows, names, sampling)
        texts = [answer.text for answer in answers]
        for request, text in zip(requests, texts):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts
