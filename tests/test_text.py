"""Text: what cleaning leaves, what a vocabulary is learned from, and a model down to its file."""

import collections
import sys
import unicodedata

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfopt
from tfopt.text import (
    CleanText,
    Subwords,
    SubwordTokenizer,
    TokenDropout,
    Vectorize,
    WordTokenizer,
    load_tokenizer,
    text_cnn,
)

GOOD, BAD = ["fine", "lovely", "superb"], ["dull", "awful", "tired"]
OTHER = ["the", "a", "film", "it", "was", "of", "and", "to"]
# Letters as wide as Chinese ones, and two words that a joiner tells apart.
WIDE, JOINED = "\uff37\uff37\uff37", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"


def reviews(size=240, seed=0):
    """Sentences with two words that tell the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    texts = []
    for label in labels:
        words = [*rng.choice((BAD, GOOD)[label], 2), *rng.choice(OTHER, rng.integers(3, 7))]
        texts.append(" ".join(rng.permutation(words)))
    return np.array(texts, object), labels


def texts_of(*batches):
    return tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tf.TensorSpec((None,), tf.string)
    ).map(lambda x: x)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p class='x'>One<BR/>two</p>", "one two"),
        ("a < b, 1<2, <3 and c > d", "a < b, 1<2, <3 and c > d"),
        ("x<script>if (a<b) c()</script >y<style>p {}</STYLE>z<!-- <b>no</b> -->w", "x y z w"),
        ("kept <!-- never closed <b>", "kept"),
        ("AT&amp;T &lt;b&gt; &eacute;&#233;&#xe9; &nope;", "at&t <b> ééé &nope;"),
        ("zero\u200bwidth so\u00adft \ufefftop nul\x00 esc\x1b[1m", "zerowidth soft top nul esc[1m"),
        (f"{JOINED} 👩\u200d👩\u200d👧", f"{JOINED} 👩\u200d👩\u200d👧"),
        ("see HTTPS://A.org/b?c=(1), or (www.b.de/x).", "see url, or (url)."),
        ("wwww.a", "wwww.a"),
        (f"ﬁne {WIDE} e\u0301 \u212b", "fine www é å"),
        ("ÄÖÜ ΣΑΣ", "äöü σας"),
        # Of these the small letters alone have a sign of their own.
        ("J\u030c H\u0331", "\u01f0 \u1e96"),
        (" \t much\n\n  room\u00a0\u2003here ", "much room here"),
        ("one\ntwo\tthree\x85four", "one two three four"),
        ("", ""),
    ],
)
def test_cleaned(text, expected):
    assert CleanText().clean(text) == expected


def test_every_flag_does_its_own_part_alone():
    text = f" <b>É</b>e\u0301&amp;\x00  {WIDE}.a.b  www.c.d "
    off = {"html": False, "control": False, "unicode": None, "urls": None, "lower": False, "whitespace": False}
    assert CleanText(**off).clean(text) == text
    expected = {
        "html": f"  É e\u0301&\x00  {WIDE}.a.b  www.c.d ",
        "control": text.replace("\x00", ""),
        "unicode": unicodedata.normalize("NFKC", text),
        "urls": text.replace("www.c.d", "url"),
        "lower": text.lower(),
        "whitespace": f"<b>É</b>e\u0301&amp;\x00 {WIDE}.a.b www.c.d",
    }
    default = CleanText()
    for flag, result in expected.items():
        assert CleanText(**{**off, flag: getattr(default, flag)}).clean(text) == result
    assert CleanText(urls="").clean("to www.c.d now") == "to now"
    assert CleanText(unicode="NFC").clean("ﬁ e\u0301") == "ﬁ é"


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_clean_text_stays_as_it_is(text):
    # Entities may hide entities: they are read once.
    step = CleanText(html=False)
    once = step.clean(text)
    assert step.clean(once) == once
    assert unicodedata.is_normalized("NFKC", once)
    assert once == " ".join(once.split())
    assert not any(unicodedata.category(each) == "Cc" for each in once)


def test_batches_of_any_shape_and_parallel_maps():
    texts = np.array([["<b>Eins</b>", "ZWEI &amp; mehr"], ["Ünï", ""], ["a", "  b "]], object)
    expected = np.vectorize(CleanText().clean, otypes=[object])(texts)
    for given_texts, cleaned in ((texts, expected), (texts[:, 0], expected[:, 0]), (texts[:0], expected[:0])):
        made = CleanText()(given_texts)
        assert made.shape == given_texts.shape
        assert [each.decode() for each in made.numpy().ravel()] == list(cleaned.ravel())
    assert CleanText()("<b>One</b>").numpy() == b"one"
    many = tf.data.Dataset.from_tensor_slices(np.tile(texts[:, 0], 30)).batch(4)
    assert many.map(CleanText()).element_spec.shape == (None,)
    one, eight = (list(many.map(CleanText(), num_parallel_calls=n).unbatch().as_numpy_iterator()) for n in (None, 8))
    assert one == eight
    assert [each.decode() for each in one] == list(np.tile(expected[:, 0], 30))


def test_what_is_no_utf8_is_an_error():
    texts, message = ["fine", "café".encode("latin-1")], r"caf\\xe9.* is no UTF-8 .* such as latin-1"
    with pytest.raises(ValueError, match=message):
        CleanText()(texts)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(tf.data.Dataset.from_tensor_slices(texts).batch(2).map(CleanText()))


def test_words_are_counted_and_numbered():
    texts, _ = reviews()
    learned = Vectorize(tokens=9, length=6).adapt(texts_of(texts[:100], texts[100:]))
    counts = collections.Counter(" ".join(texts).split())
    # The most frequent first; of equals the last in the alphabet, as Keras does.
    ordered = sorted(counts, key=lambda word: (counts[word], word), reverse=True)
    assert learned.vocabulary == ("", "[UNK]", *ordered[:7])
    number = {word: place for place, word in enumerate(learned.vocabulary)}
    rows = learned(texts)
    assert rows.dtype == tf.int32
    assert rows.shape == (240, 6)
    for text, row in zip(texts, rows.numpy(), strict=True):
        ids = [number.get(word, 1) for word in text.split()][:6]
        assert row.tolist() == ids + [0] * (6 - len(ids))
    assert np.array_equal(learned(texts[:, None]), rows)
    mapped = tf.data.Dataset.from_tensor_slices(texts).batch(7).map(learned, num_parallel_calls=4)
    assert mapped.element_spec == tf.TensorSpec((None, 6), tf.int32)
    assert np.array_equal(np.concatenate(list(mapped.as_numpy_iterator())), rows)


def test_casing_and_punctuation_are_as_asked():
    texts = texts_of(np.array(["It's GOOD, it's good"], object))
    for standardize, words in {
        "lower_and_strip_punctuation": {"its", "good"},
        "lower": {"it's", "good,", "good"},
        "strip_punctuation": {"Its", "its", "GOOD", "good"},
        None: {"It's", "GOOD,", "it's", "good"},
    }.items():
        assert set(Vectorize(standardize=standardize).adapt(texts).vocabulary[2:]) == words


def test_subwords_spell_what_they_do_not_know():
    texts, _ = reviews()
    learned = Subwords(tokens=60, length=12).adapt(texts_of(texts[:100], texts[100:]))
    assert len(learned.vocabulary) == len(set(learned.vocabulary)) == 60
    assert learned.vocabulary[:2] == ("", "[UNK]")

    def spelt(text):
        return [learned.vocabulary[each] for each in learned([text]).numpy()[0]]

    assert spelt("superb film")[:3] == ["▁superb", "▁film", ""]
    # A word that was never seen, of letters that were.
    parts = spelt("filmdull")
    assert "[UNK]" not in parts
    assert "".join(parts) == "▁filmdull"
    # Text is no command: what looks like a special token is spelt too, its unknown signs as one.
    assert 0 not in learned(["[PAD] [UNK] [PAD] the"]).numpy()[0, :7]
    assert spelt("☃☃")[:3] == ["▁", "[UNK]", ""]
    rows = learned(texts)
    assert rows.dtype == tf.int32
    assert rows.shape == (240, 12)
    mapped = tf.data.Dataset.from_tensor_slices(texts).batch(7).map(learned, num_parallel_calls=4)
    assert mapped.element_spec == tf.TensorSpec((None, 12), tf.int32)
    assert np.array_equal(np.concatenate(list(mapped.as_numpy_iterator())), rows)


def test_subwords_are_the_same_every_time():
    texts, _ = reviews()
    several = {Subwords(tokens=90).adapt(texts_of(texts)).vocabulary for _ in range(5)}
    assert len(several) == 1


def test_a_large_alphabet_stays_within_the_vocabulary():
    texts = np.array([" ".join(chr(0x4E00 + 7 * each) for each in range(300)), "一 一"], object)
    assert len(Subwords(tokens=50).adapt(texts_of(texts)).vocabulary) <= 50


STEPS = {"words": Vectorize(tokens=300, length=8), "subwords": Subwords(tokens=120, length=16)}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_vocabulary_comes_from_training_alone(step):
    """A vocabulary that saw validation or test would hold their words, or count by them."""
    train, labels = reviews(60)
    held_out = {
        split: (np.array([f"{word} {word} {each}" for each in train[:30]], object), labels[:30])
        for split, word in (("validation", "zyzzyva"), ("test", "qoph"))
    }
    plain, seen = (
        tfopt.data.prepare(tfopt.from_arrays((train, labels), **others), [CleanText(), step])
        for others in ({"validation": (train[:9], labels[:9]), "test": (train[:9], labels[:9])}, held_out)
    )
    words, expected = seen.prepared[1].vocabulary, plain.prepared[1].vocabulary
    assert words == expected
    assert not {"zyzzyva", "qoph", "z", "q"} & {letter for word in words for letter in (word, *word)}
    # What they have is unknown, and the words of training next to it are not.
    for split in held_out:
        rows = np.stack([x for x, _ in seen.examples(split).as_numpy_iterator()])
        assert (rows == 1).any(1).all()
        assert (rows > 1).any(1).all()
    everything = np.concatenate([train, *(texts for texts, _ in held_out.values())])
    assert step.adapt(texts_of(everything)).vocabulary != expected


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_tokenizers_come_back_from_their_file(step, tmp_path):
    texts, _ = reviews()
    learned = step.adapt(texts_of(texts))
    learned.save(tmp_path / "tokens.json")
    loaded = load_tokenizer(tmp_path / "tokens.json")
    assert type(loaded) is type(learned)
    assert loaded.vocabulary == learned.vocabulary
    more = np.concatenate([texts, np.array(["Never seen ☃ [UNK] äß", ""], object)])
    assert np.array_equal(loaded(more), learned(more))
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokens.json").read_bytes()


def test_files_that_hold_no_tokenizer(tmp_path):
    half = '{"tokenizer": "WordTokenizer", "length": 3}'
    no_model = '{"tokenizer": "SubwordTokenizer", "length": 3, "model": {}}'
    for content in ("", "[]", "{}", '{"tokenizer": "Other"}', '"tokenizer"', half, no_model):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match="holds no tokenizer"):
            load_tokenizer(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "nowhere.json")


def test_subwords_without_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'tfopt\[text\]'"):
        Subwords().adapt(texts_of(reviews()[0]))


DATA = {"batch_size": 32, "name": "reviews", "class_names": ("bad", "good")}
FIT = tfopt.Fit(learning_rate=0.02)
START = [
    tfopt.Prepare((CleanText(), Vectorize(tokens=20, length=8))),
    tfopt.Augment((TokenDropout(0.05),)),
    tfopt.Build(text_cnn, {"tokens": 20, "dimensions": 8, "filters": 6, "kernels": (2, 3), "dropout": 0.1}),
    tfopt.Train(2, FIT),
]


@pytest.mark.slow
def test_a_chain_from_text_to_an_int8_file(tmp_path):
    stages = [*START, tfopt.Prune(0.5, 1, fit=FIT), tfopt.QuantizeAware(1, fit=FIT), tfopt.ExportTFLite()]
    work = tfopt.run(stages, tfopt.Work(data=tfopt.from_arrays(reviews(), **DATA), workdir=tmp_path))
    artefact = work.report.artefacts["tflite"]
    assert artefact["quantization"] == "int8"
    assert artefact["accuracy"] >= 0.9
    assert artefact["parity"]["argmax_agreement"] >= 0.95
    assert artefact["total_sparsity"] >= 0.49
    assert tfopt.float_islands(work.model) == {}
    note = work.report.stages[0].notes[0]
    assert "Vectorize(tokens=20, length=8)" in note
    assert "inputs of shape () to (8,)" in note


def test_a_trained_model_becomes_an_int8_file(tmp_path):
    data = tfopt.data.prepare(tfopt.from_arrays(reviews(), **DATA), START[0].steps)
    model = text_cnn(data.input_shape, 2, tokens=20, dimensions=8, filters=6, kernels=(2,))
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(data.train, epochs=4, shuffle=False, verbose=0)
    tfopt.export_tflite(model, tmp_path / "model.tflite", "int8", data)
    parity = tfopt.verify_tflite(model, tmp_path / "model.tflite", data, max_examples=24)
    assert parity.argmax_agreement >= 0.95
    assert parity.tflite_metric >= 0.9


@pytest.mark.slow
def test_a_chain_goes_on_with_the_same_numbers(tmp_path, broken_off):
    def done(folder):
        return tfopt.run(START, tfopt.Work(data=tfopt.from_arrays(reviews(), **DATA), workdir=folder))

    whole = done(tmp_path / "whole")
    broken_off(lambda: done(tmp_path / "broken"))
    # The vocabulary is not kept: it is learned again, from the same texts.
    for resumed in (done(tmp_path / "broken"), done(tmp_path / "broken")):
        assert resumed.report.stages[-1].history == whole.report.stages[-1].history
        assert resumed.data.prepared[1].vocabulary == whole.data.prepared[1].vocabulary
        for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


NUMBERS = tf.data.Dataset.from_tensor_slices(np.zeros((4, 3), "float32")).batch(2)
COLUMNS = tf.data.Dataset.from_tensor_slices(np.full((4, 3), "a")).batch(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CleanText(unicode="NFD"), "unicode must be one of NFC, NFKC or None"),
        (lambda: CleanText().adapt(NUMBERS), "CleanText takes one input of strings"),
        (lambda: CleanText()([1.0]), "CleanText takes one input of strings"),
        (lambda: Vectorize(2), "tokens must be at least 3"),
        (lambda: Subwords(length=0), "length must be at least 1"),
        (lambda: Vectorize(standardize="upper"), "standardize must be one of .* received 'upper'"),
        (lambda: Vectorize().adapt(NUMBERS), "Vectorize takes one input of strings"),
        (lambda: Vectorize().adapt(COLUMNS), "one text for each example"),
        (lambda: Subwords().adapt(COLUMNS), "one text for each example"),
        (lambda: Vectorize().adapt(texts_of(np.array(["", " "], object))), "have no words"),
        (lambda: Subwords().adapt(texts_of(np.array(["", ""], object))), "have no characters"),
        (lambda: WordTokenizer(("a", "b"), 3), "a vocabulary begins with"),
        (lambda: text_cnn((8, 3), 2), "text_cnn takes rows of tokens"),
        (lambda: text_cnn((8,), 2, embeddings=np.zeros((3, 3))), r"here \(8000, 64\), not \(3, 3\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_are_sorted_and_documented():
    assert tfopt.text.__all__ == sorted(tfopt.text.__all__)
    assert all(getattr(tfopt.text, name).__doc__ for name in tfopt.text.__all__)
    assert issubclass(SubwordTokenizer, tfopt.text.Tokenizer)
