"""Talk to a model in the terminal: any run, folder or Hub name that opens as a causal language model.

transformers has a chat command too, but it talks to a server that has to be installed and started first.

Run: python -m scripts.chat runs/rlhf/ppo/quickstart
"""

import argparse

from recipes.core.errors import UserError, report_user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", nargs="?", help="runs/<config>, a folder, or a Hub name")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--keep_history", action="store_true", help="let the model see the earlier turns")
    options = parser.parse_args()
    with report_user_errors():
        if not options.model:
            raise UserError("name a model: make chat MODEL=runs/rlhf/ppo/quickstart")
        talk(options)


def talk(options: argparse.Namespace) -> None:
    """Read a line, stream the answer, until end of input. Without a chat template the model continues the text."""
    from transformers import AutoModelForCausalLM, TextStreamer

    from recipes.core.models import ModelConfig
    from recipes.core.recipe import quiet_libraries
    from recipes.core.weights import load_pretrained

    quiet_libraries()
    tokenizer = ModelConfig(model_name_or_path=options.model).load_tokenizer(needs=("eos_token",))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if (options.system or options.keep_history) and tokenizer.chat_template is None:
        raise UserError(
            f"{options.model} has no chat template and continues text: leave out --system and --keep_history"
        )
    model = load_pretrained(AutoModelForCausalLM, options.model).eval()
    first = [{"role": "system", "content": options.system}] if options.system else []
    history = list(first)
    print(f"{options.model}: write a line; end with Ctrl-D")
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not text:
            continue
        history = [*(history if options.keep_history else first), {"role": "user", "content": text}]
        if tokenizer.chat_template:
            inputs = tokenizer.apply_chat_template(
                history, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = tokenizer(text, return_tensors="pt")
        greedy = options.temperature <= 0
        output = model.generate(
            **inputs.to(model.device),
            do_sample=not greedy,
            temperature=None if greedy else options.temperature,
            max_new_tokens=options.max_new_tokens,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        history.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
