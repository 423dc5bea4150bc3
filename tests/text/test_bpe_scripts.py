"""Byte-pair encoding of paragraphs in many scripts, of code and of random bytes: tiktoken is the judge."""

import random

import numpy as np
import pytest
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from common.data.corpora import corpus
from common.tokenizers import bpe, tokenizer

TEXTS = {
    "French": """Hier, à Orléans, une élève naïve a reçu un gâteau de Noël. « Où est passé l'œuf ? » demanda-t-elle ; sa
sœur, déçue, répondit qu'il n'y en avait plus. Ça coûte 3,50 € le kilo, soit 12 % de plus que l'été dernier.""",
    "Polish, Turkish, Vietnamese": """Zażółć gęślą jaźń, powiedziała Łucja, i poszła nad Wisłę. Işık söndü, çünkü ağaç
yıkıldı; İstanbul'da yağmur yağıyor. Hôm nay trời đẹp, chúng tôi đi chợ mua quả xoài và một ít bánh mì nướng.""",
    "decomposed Latin": """Cafe\u0301, nai\u0308ve, an\u0303o: the same words with their marks apart.
A\u030angstro\u0308m did not mind, and Z\u0361a\u0335l\u0334go\u0301\u0300 never would;
o\u0302\u0323 has two marks in another order.""",
    "Cyrillic": """Вчера вечером старый фонарь у реки снова загорелся. Никто не знал, кто его зажёг: ни дворник, ни
почтальон, ни дети. «Это ёжик!» — крикнула Маша. Її сусідка з Києва лише всміхнулася; ґанок був порожній.""",
    "Greek": """Το πρωί ο ψαράς έλυσε τη βάρκα και κοίταξε τη θάλασσα· «δεν θα φυσήξει», είπε. Στις 7:45 γύρισε με δύο
καλάθια ψάρια, κι όλοι οι γείτονες μαζεύτηκαν στην προβλήτα. Ἐν ἀρχῇ ἦν ὁ λόγος, διάβαζε ο παπάς.""",
    "Arabic": """في الصباح فتحت البنت نافذة البيت القديم، ورأت قطًّا أسود فوق السور. قالت له: «هل أنت جائع؟» فلم يُجِب.
اشترت خبزًا بـ ٢٥ قرشًا، وعادت قبل الظهر. کتاب‌های فارسی هم روی میز بود، و چای سرد شده بود.""",
    "Hebrew": """הילד מצא מפתח ישן מתחת לעץ הזית, ושאל את סבתא: "של מי זה?" היא חייכה ולא ענתה. בְּרֵאשִׁית היה רק גן קטן,
ואחר כך בנו כאן בית, רחוב ועיר שלמה. המחיר היום: 45 ₪ לקילו.""",
    "Devanagari": """गाँव के बाहर एक पुराना कुआँ था, जिसमें बच्चे पत्थर फेंकते थे। एक दिन राधा ने सुना कि कोई नीचे से बोल रहा
है: "कृपया धीरे फेंकिए!" वह हँसी और दौड़कर घर गई। मेले में १२ दुकानें थीं, और हर एक पर भीड़।""",
    "Thai": """เช้าวันนี้ฝนตกหนัก แม่ค้าที่ตลาดจึงกางร่มสีแดงไว้หน้าร้าน เด็กชายคนหนึ่งเดินเท้าเปล่ามาซื้อกล้วยสามหวี ราคา ๓๕ บาท
แล้วถามว่า "พรุ่งนี้จะมาอีกไหมครับ" เธอยิ้มแต่ไม่ได้ตอบ""",
    "Chinese": """昨天晚上，老王在河边捡到一只很小的船。船里没有人，只有一封信和三个苹果。
信上写着：“请把我送到对岸。”他想了很久，終於劃了過去，對岸卻是一座空城。
門票：￥１２０，學生半價！老王嘆了口氣，把蘋果一個一個放在石階上，慢慢走回家。""",
    "Japanese": """駅前のパン屋は、毎朝六時に店を開ける。今日は雨なので、客はまだ二人しかいない。
「メロンパンはありますか？」と女の子が聞いた。店主は首を横に振り、ｶﾀｶﾅの札を裏返した。１００円のコーヒーだけが、まだ温かい。""",
    "Korean": """산 아래 작은 마을에는 시계를 고치는 할아버지가 살았다. 어느 날 한 소년이 멈춘 시계를 들고 와서
"고칠 수 있어요?" 하고 물었다. 할아버지는 웃으며 3일만 기다리라고 했다. 각각 값은 5,000원이었다.
\u1112\u1161\u11ab도 있었다.""",
    "emoji and signs": """Ship it 🚀🚀, said 👩🏽‍💻 to 👨‍👩‍👧‍👦; the flag 🇨🇭🇯🇵 was up and ❤️‍🔥 burnt. ☕️×2 = ½ of ⅔ € …
∑ᵢ xᵢ² ≤ ∞ → ∅, ℵ₀ ∈ 𝔐, 𝒳 ≠ 𝓧, ㎞, №5, Ⅷ, ①②③, ﬁ and ﬀ, a\u00a0b\u2003c\u200bd\u2028e\ufefff,
half a face: \U0001f468\u200d.""",
    "Tamil, Georgian, Amharic, Khmer": """மழை பெய்தது, குழந்தைகள் தெருவில் ஆடினார்கள். დილით მეზობელმა ყვავილები
მოიტანა. ዛሬ ጠዋት ቡና ጠጣን፤ ከዚያም ወደ ገበያ ሄድን። ថ្ងៃនេះមេឃស្រឡះល្អ ហើយក្មេងៗលេងនៅមាត់ទន្លេ។""",
    "code": """def größe(x: float, *, ε=1e-12) -> "Länge":  # naïve: 東京 × мир
\tif x<=ε and not{'a':1}.get("b",[]): return f"{x!r:>10}\\n\\t\\u00e9"
    for i,(k,v)in enumerate(sorted(d.items())):\r
\t\t  s+=k[::-1]+str(v)*2;  a[i]^=0xFF&~mask   \t
int main(void){const char*s="ü\\0";for(;;)if(!s[0]||s++->x)break;/* it's */return!!s;}\n\n
\t\t
<p class='x'>&nbsp;</p>""",
}
ALL = "\n\n".join(TEXTS.values())
NOISE = random.Random(11).randbytes(20_000)
VOCABULARIES = {"of manuals": lambda: corpus("pydoc").text[:60_000], "of these texts": lambda: ALL}


def judge(own):
    """tiktoken with our vocabulary."""
    ranks = {token: number for number, token in enumerate(own.tokens[: -len(own.specials)])}
    return tiktoken.Encoding("ours", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=own.specials)


@pytest.fixture(scope="module", params=VOCABULARIES)
def both(request):
    own = bpe.train(VOCABULARIES[request.param](), 1000)
    return own, judge(own)


def test_the_texts_are_of_many_scripts():
    blocks = {ord(letter) >> 7 for letter in ALL if letter.isalpha()}
    assert len(blocks) > 40
    assert len(set(ALL)) > 600
    assert min(map(len, TEXTS.values())) > 100


@pytest.mark.parametrize("name", TEXTS)
def test_a_paragraph_has_tiktokens_tokens(both, name):
    own, theirs = both
    for text in (TEXTS[name], f" {TEXTS[name]}\n", TEXTS[name][::-1], TEXTS[name].replace(" ", "  ")):
        ids = own.encode(text).tolist()
        assert ids == theirs.encode_ordinary(text)
        assert own.decode_bytes(ids) == theirs.decode_bytes(ids) == text.encode()
        assert own.decode(ids) == theirs.decode(ids) == text


def test_a_vocabulary_of_these_texts_has_tokens_of_their_scripts():
    own = bpe.train(ALL, 1000)
    learnt = [token.decode("utf-8", errors="ignore") for token in own.tokens[256:-1]]
    for letters in ("ся", "の", "ال", "า", "ा", "다", "，"):
        assert any(letters in token for token in learnt), letters
    assert len(own.encode(ALL)) < 0.7 * len(bpe.train("x", 257).encode(ALL))


def test_random_bytes_are_tiktokens(both):
    """As bytes that are no text: one by one, in tokens drawn at random, and as the text that they show as."""
    own, theirs = both
    single = [theirs.encode_single_token(bytes([byte])) for byte in NOISE]
    drawn = random.Random(5).choices(range(own.vocab_size), k=5000)
    for ids in (single, drawn):
        assert own.decode_bytes(ids) == theirs.decode_bytes(ids)
        shown = theirs.decode_bytes(ids).decode("utf-8", errors="replace")
        assert own.decode(ids) == theirs.decode(ids) == shown
        assert own.encode(shown).tolist() == theirs.encode_ordinary(shown)
    assert own.decode_bytes(single) == NOISE


def test_gpt2s_vocabulary_has_tiktokens_tokens_of_all_of_them(data_dir):
    own, theirs = bpe.load(data_dir / "gpt2"), tokenizer("gpt2", data_dir / "gpt2")
    for text in (*TEXTS.values(), ALL, NOISE.decode("utf-8", errors="replace"), NOISE.decode("latin-1")):
        assert np.array_equal(own.encode(text), theirs.encode(text))
        assert own.decode(own.encode(text)) == text
