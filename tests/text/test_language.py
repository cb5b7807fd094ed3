"""Other languages are named when that is sure; English with foreign names never is."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from speech_mtp.text.language import foreign_language
from speech_mtp.text.normalize import check_text

CORPUS = Path(__file__).parents[2] / "recipes" / "corpus"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Guten Morgen, wie geht es dir heute?", "German"),
        ("Le chat est sur la table.", "French"),
        ("El perro está en la casa.", "Spanish"),
        ("Buongiorno, come stai oggi?", "Italian"),
        ("Bom dia, como você está?", "Portuguese"),
        ("Het is een mooie dag vandaag.", "Dutch"),
        ("Jag vill ha en kopp kaffe.", "Swedish"),
        ("Dzień dobry, jak się masz?", "Polish"),
        ("Xin chào, bạn có khỏe không?", "Vietnamese"),
        ("Hà Nội là thủ đô của Việt Nam.", "Vietnamese"),
        ("Tôi rất thích ăn phở vào buổi sáng.", "Vietnamese"),
        (unicodedata.normalize("NFD", "Hôm nay trời đẹp quá, chúng ta đi chơi nhé."), "Vietnamese"),
    ],
)
def test_a_language_is_named(text: str, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        check_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "Charles de Gaulle, Simone de Beauvoir and Vincent van Gogh",
        "Los Angeles, El Paso, Las Vegas, La Jolla",
        "Rio de Janeiro",
        "Je ne sais quoi",
        "for i in range(10): print(i)",
        "Translate German to English: Patek kann gegen sein Urteil noch Berufung einlegen.",
        "x = la + le",
        "y = il + la + le + di",
        "del x, y; la = le + un; il = la * di",
        "if (der == das) { die = ist; }",
        "Nguyễn Văn Thiệu and Trần Hưng Đạo are names from Việt Nam.",
        "123 Rue de la Paix, 75002 Paris",
        "ok",
    ],
)
def test_english_names_and_code_pass(text: str) -> None:
    assert foreign_language(text) is None


def test_the_dev_sentences_pass() -> None:
    lines = (CORPUS / "dev_sentences.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if foreign_language(line)] == []
