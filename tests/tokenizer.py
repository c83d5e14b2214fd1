"""A tokenizer for the models of the tests, which have none of their own."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers


def trained(text: str) -> Tokenizer:
    """A byte-level BPE like GPT-2's, of a few hundred tokens; each text begins with the token `<s>`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made
