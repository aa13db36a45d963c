"""The words of the age filter, all in one place: clinical, with slang only where rows would be missed.

A *word* counts when it stands alone, a *part* anywhere in a word, a *phrase* as neighbouring words, a *sign*
anywhere.
"""


def phrases(text: str) -> tuple[str, ...]:
    """Phrases between bars and line ends."""
    return tuple(phrase.strip() for phrase in text.replace("\n", "|").split("|") if phrase.strip())


MINOR_WORDS = frozenset(
    """
    tween tweens lad lads laddie lass lasses lassie boi bois
    tot tots brat brats son sons daughter daughters stepson stepdaughter niece nephew pupil
    pupils grader graders freshman freshmen sophomore sophomores nubile grl grls gurl gurls putti putto
    nina ninas nino ninos menor menores menina meninas menino crianca enfant enfants fillette mineur mineure
    kinder madchen bambina bambino ragazzina
    """.split()
)
MINOR_PARTS = tuple(
    """
    child kid minor girl boy teen underage toddler infant baby babies newborn pubescen puberty adolescen
    juvenile young youth school student kindergar orphan cherub quinceanera yearold yearsold yrold yrsold
    """.split()
)
MINOR_PHRASES = phrases(
    """
    barely legal|not legal|below legal|of legal age|under age|of age|tender age|early age|junior high
    little sister|little brother|little one|little ones|little lady|little princess|little angel
    """
)
MINOR_SIGNS = tuple(
    """
    👧 👦 👶 🧒 🍼 少女 少年 幼女 子供 子ども 児童 小学生 中学生 高校生 初中生 儿童 孩子 女孩 男孩 ロリ ショタ
    """.split()
)

# Ordinary words that hold a minor's word or a sexual one by chance.
INNOCUOUS = frozenset(
    """
    girlfriend girlfriends boyfriend boyfriends cowboy cowboys canteen canteens velveteen boycott soon
    kidney kidneys skid lollipop lollipops lolly essex sussex wessex middlesex
    """.split()
)

SEXUAL_WORDS = frozenset(
    """
    nud xxx bdsm bra bras thong thongs anal anus oral lust lustful lusty rape raped rapes raping rapist
    strip strips stripper strippers stripping stripped striptease intimate intimately swimsuit swimwear nipple
    ass asses butt butts tit tits titties cum cock cocks dick dicks pussy slut sluts whore whores hooker milf
    """.split()
)
SEXUAL_PARTS = tuple(
    """
    nude nudi nudity naked sex erotic porn nsfw hentai ecchi topless bottomless shirtless barechest lingerie
    underwear panties bikini breast nipples genital penis vagina vulva buttock pubic masturbat orgasm
    intercourse fetish undress unclothed disrob sensual seduc provocativ lewd explicit bondage crotch groin
    cleavage aroused arousal arousing incest molest prostitut brothel boudoir obscen scantily skimpy
    boob fuck blowjob handjob onlyfans
    """.split()
)
SEXUAL_PHRASES = phrases(
    """
    no clothes|no clothing|no clothed|without clothes|without clothing|without any clothes|wearing nothing
    nothing on|see through|bare chest|bare chested|bare body|bare skin|birthday suit|making love|make love
    """
)
SEXUAL_SIGNS = ("🔞", "裸", "エロ", "ヌード", "色情", "性交")

CATEGORY_WORDS = frozenset("adult adults mature".split())
"""Words that make a category sexual, though in a prompt they would not."""

BOTH_WORDS = frozenset(
    """
    csam pedo pedophile jailbait ageplay ddlg nymphet nymphets loli lolis lolita lolicon shota shotacon
    """.split()
)
BOTH_PARTS = ("loli", "shota", "pedophil", "paedophil")
"""Sexual and a minor at once: such a row is dropped whatever its category."""

NUMBERS = {
    word: str(value)
    for value, words in enumerate(
        phrases(
            """
            zero|one first|two second|three third|four fourth|five fifth|six sixth|seven seventh|eight eighth
            nine ninth|ten tenth|eleven eleventh|twelve twelfth|thirteen|fourteen|fifteen|sixteen|seventeen
            eighteen|nineteen|twenty
            """
        )
    )
    for word in words.split()
}
