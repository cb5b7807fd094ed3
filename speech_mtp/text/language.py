"""Text in another language than English is refused by name, from the words of its beginning alone.

A language is named only when its commonest words, which are no English words, make up much of the text and those of
English hardly any: names, code and loan words never do.
"""

from __future__ import annotations

import re
import unicodedata

LOOK = 200
"""How many characters of the beginning are looked at."""
WORD = re.compile(r"[^\W\d_]+")
SIGN = re.compile(r"[=+*/<>{}\[\]_^|\\]")
WORDS_PER_SIGN = 8
"""Text with more signs than one in so many words is a formula or code, whose names tell nothing."""
MIN_WORDS, MIN_KNOWN, MIN_SHARE = 4, 3, 0.22

COMMON = {
    "German": (
        "der das und ist nicht ich ein eine einen einem zu mit auf für von den sie es auch sich dem wie wir aber"
        " oder wird sind haben wurde kann mein dein sein ihr noch nach bei über heute sehr schön guten wenn dass im"
        " vom zum zur weil gehen morgen habe möchte ja nein durch warum du er hat bitte danke wo alle"
    ),
    "French": (
        "comment allez vous ça va le la les et est je nous une des du que qui dans pour pas ne il elle ce cette"
        " sont avec sur mais mon votre notre leur très où être aux au bonjour merci oui tu suis aujourd hui quand"
        " comme fait un de en ses tout j n qu"
    ),
    "Spanish": (
        "hola hoy estás quiero tengo eres soy el la los las es y que en un una por para con no se su lo como más"
        " pero está muy yo este esta son del al hay también fue ser tiene todo cuando gracias qué cómo dónde mi mis"
        " tu buenos días de nos le ya"
    ),
    "Italian": (
        "sul nei stai sta il lo la gli le di che è e un una per non con sono del della dei nel nella questo questa"
        " come più ma anche mi ti si ha ho molto buongiorno grazie ciao perché dove al alla i io noi oggi da in"
        " bene"
    ),
    "Portuguese": (
        "o os as um uma de que e é não em para com por mais como mas foi ao do da dos das no na ele ela você isso"
        " este está são também muito eu meu sua seu se obrigado bom dia onde quando hoje nós"
    ),
    "Dutch": (
        "de het een en van ik je is dat niet op te voor met zijn er maar om hij ook aan heeft hebben bij dit wat"
        " naar deze uit nog wel geen zij wij kan worden door goed dank hoe waar als mijn ben vandaag wordt"
    ),
    "Swedish": (
        "vill ha och att det som en är på av för med den till inte har jag om ett var vi men du han hon så kan"
        " från min ska mycket idag tack hej vad hur när eller din detta här"
    ),
    "Danish": (
        "og at det som en er på af for med den til ikke har jeg om et var vi men du han hun så kan fra min skal"
        " meget tak hej hvad hvordan når eller din dette her i dag også"
    ),
    "Polish": (
        "i w nie na się jest to że z do jak co ale tak za od po jego przez dla mnie czy ja są był być już tylko"
        " bardzo dzień dobry dziękuję proszę gdzie kiedy ten dzisiaj o jestem"
    ),
    "Turkish": (
        "bir ve bu için çok ne da de ile var ben sen o mi değil ama gibi daha en olarak kadar sonra benim nasıl"
        " merhaba teşekkür ederim bugün evet hayır güzel iyi neden nerede"
    ),
    "Indonesian": (
        "yang dan di ini itu dengan untuk tidak dari dalam akan pada saya kamu adalah ke juga ada bisa sudah atau"
        " anda kami mereka apa selamat terima kasih hari sangat karena"
    ),
    "Czech": (
        "a je se na v že to s z do jsem jak ale pro tak by co jsou byl být nebo jeho jako velmi dobrý den děkuji"
        " kde když dnes já ty není jsme má"
    ),
    "Romanian": (
        "și în de la nu un o este cu pe că pentru din care sunt mai ce se am fi ca dar foarte bună ziua mulțumesc"
        " unde când acest această eu astăzi"
    ),
    "Vietnamese": (
        "và là tên của có không được cho một những các người trong với để này đã tôi bạn chúng rất nhưng khi như thì"
        " cũng từ đến nhiều làm xin chào cảm ơn hôm nay gì nào anh em ông bà ra vào lại sẽ đang ở về theo"
    ),
}
ENGLISH_WORDS = (
    "a about all an and are as at be been but by can could did do each english for from get go had has"
    " have he her him his how i if in into is it its like look make many may me more my no not now of on"
    " one or other our out said say see she so some than that the their them then there these they this"
    " time to translate two up use was way we were what when which who will with would you your"
)
LETTERS = {
    "German": "äöüß",
    "French": "çèêàœ",
    "Spanish": "ñáéíóú",
    "Italian": "àèìòù",
    "Portuguese": "ãõçáê",
    "Dutch": "ë",
    "Swedish": "åäö",
    "Danish": "æøå",
    "Polish": "łąęńśźż",
    "Turkish": "ğşıçöü",
    "Czech": "řěůčšžýí",
    "Romanian": "țșăâî",
    "Vietnamese": "ảạấầẩẫậắằẳẵặẻẽẹếềểễệỉĩịỏọốồổỗộớờởỡợủũụứừửữựỳỷỹỵơưđ",
}
"""Words in small letters that hold one of these count as the language's own."""
ENGLISH = frozenset(ENGLISH_WORDS.split())
KNOWN = {name: frozenset(words.split()) for name, words in COMMON.items()}


HOMOGRAPHS = {
    name: frozenset(words.split())
    for name, words in {
        "German": "in an so am war man die was hat bin art also",
        "French": "on a an as son me car or par plus dire",
        "Spanish": "a no me he has sin son van soy",
        "Italian": "a in no me per come due o era fare",
        "Portuguese": "a no do as me era for tem dos",
        "Dutch": "in is was of we had men over of hem had",
        "Swedish": "i en at man var an för under",
        "Danish": "at for i en man var under",
        "Polish": "i to do a no by on",
        "Turkish": "on at an o ben",
        "Indonesian": "di in an",
        "Czech": "a to do on my by",
        "Romanian": "a in o am are la",
    }.items()
}
"""Words of a language that are English words too: they tell nothing."""


def check_language(text: str) -> None:
    """Raise ValueError, naming the language, when the beginning of ``text`` is surely not English."""
    name = foreign_language(text)
    if name:
        raise ValueError(f"The text seems to be {name}, and only English can be spoken; translate it first.")


def foreign_language(text: str) -> str | None:
    """The language that the first ``LOOK`` characters of ``text`` are surely in, or None: English, or not sure."""
    beginning = unicodedata.normalize("NFC", text[:LOOK])
    written = WORD.findall(beginning)
    words = [w.lower() for i, w in enumerate(written) if w.islower() or i == 0]  # a capital may open a name
    if len(written) < max(MIN_WORDS, WORDS_PER_SIGN * len(SIGN.findall(beginning))):
        return None
    name, own = max(((n, _own_words(words, n)) for n in KNOWN), key=lambda found: len(found[1]))
    english = sum(w in ENGLISH and w not in KNOWN[name] and w not in HOMOGRAPHS.get(name, ()) for w in words)
    telling = len(set(own) - ENGLISH)
    sure = telling >= MIN_KNOWN and len(own) >= MIN_SHARE * len(written) and len(own) >= 12 * english
    return name if sure else None


def _own_words(words: list[str], name: str) -> list[str]:
    letters = LETTERS.get(name, "")
    return [w for w in words if w in KNOWN[name] or any(c in letters for c in w)]
