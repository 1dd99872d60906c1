"""Other people's ways of asking: what turns one written question into many, so that the model listens for the topic
and not for the exact words."""

import math
import re
from random import Random

GREETINGS = (
    "Hi, ", "Hello, ", "Hey, ", "Hello! ", "Hi there. ", "Good morning. ", "Good afternoon, ", "Please tell me: ",
    "Quick question: ", "I have a question. ", "Can you help me? ", "I need some advice. ", "Question: ", "So, ",
    "Please help. ", "Sorry to bother you, ", "One more thing: ", "Dear coach, ",
)  # fmt: skip
CLOSINGS = (
    " Thanks!", " Thank you.", " Please.", " Please keep it short.", " Please explain.", " Any advice?",
    " Thanks in advance!", " Give me a short answer.", " Answer in detail.", " I would like to know more.",
    " Any ideas?", " Any tips?", " What do you think?", " I am not sure.", " Please help me.", " What should I do?",
    " What would you do?", " How?", " Is that okay?", " tips", " advice", " help",
)  # fmt: skip
PREAMBLES = (
    "I am {age}. ", "I am {age} and ", "I'm {age} years old. ", "I work as a {job}. ", "I am a {job} and ",
    "I'm a {job}. ", "I have worked as a {job} for {years} years. ", "I have been with my company for {years} years. ",
    "I live in {place}. ", "I just moved to {place}. ", "I am from {place} and ", "My name is {name}. ",
    "My friend {name} told me to ask you: ", "I have been thinking about this for {years} weeks. ",
    "I am at a small company. ", "We are a team of {years}. ", "It is {day} and ", "Since {day} I have wondered: ",
    "My {relative} asked me: ", "My {relative} says that you can help. ", "Maybe a strange question, but ",
    "I could not find this anywhere. ", "I am a little lost. ", "This is for my {relative}. ", "Last week I wondered: ",
)  # fmt: skip
FILLINGS = {
    "age": tuple(str(age) for age in range(17, 66)),
    "job": ("cashier", "baker", "driver", "student", "gardener", "librarian", "developer", "secretary", "carpenter",
            "photographer", "biologist", "lawyer", "mechanic", "hairdresser", "musician", "clerk", "builder", "farmer",
            "receptionist", "consultant", "journalist", "florist", "barista", "chemist", "translator"),
    "years": ("two", "three", "four", "five", "six", "ten", "2", "3", "7", "12"),
    "place": ("Berlin", "Ohio", "London", "Texas", "Madrid", "Toronto", "a small town", "Kenya", "Poland", "Lisbon"),
    "name": ("Anna", "Tom", "Maria", "Ali", "Chen", "Lucas", "Priya", "Emma", "Kofi", "Yuki"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday"),
    "relative": ("brother", "sister", "son", "daughter", "wife", "husband", "cousin", "neighbour", "friend"),
}  # fmt: skip
HOW_FRAMES = (
    "How can I {}?", "How should I {}?", "how to {}", "What is the best way to {}?", "Can you tell me how to {}?",
    "I want to {}", "I would like to {}", "I need to {}", "What should I do to {}?", "Help me {}", "Tips to {}",
    "What do I have to do to {}?", "I do not know how to {}", "Explain how to {}", "Could you explain how I can {}?",
    "What is a good way to {}?", "What helps to {}?", "Advice on how to {}", "How does one {}?", "Show me how to {}",
    "Is there a way to {}?", "Please tell me how to {}", "i have to {}", "How would you {}?",
)  # fmt: skip
SHOULD_FRAMES = (
    "Do I have to {}?", "Is it a good idea to {}?", "Is it good to {}?", "Would you {}?", "Do I need to {}?",
    "Is it smart to {}?", "Must I {}?", "Can I {}?", "Is it wise to {}?", "I am not sure whether to {}", "May I {}?",
    "Is it okay to {}?", "Is it better to {}?",
)  # fmt: skip
WHAT_FRAMES = (
    "What does {} mean?", "Explain {}", "{} meaning", "Define {}", "Can you explain {}?", "Tell me about {}", "{}",
    "what's {}", "What exactly is {}?", "{} definition", "I want to understand {}", "How does {} work?",
)  # fmt: skip
# Words that stand for each other often enough; what one does to a sentence's grammar does not matter here.
SYNONYMS = (
    ("resume", "CV", "résumé", "curriculum vitae"), ("boss", "manager", "supervisor", "team lead", "superior"),
    ("colleague", "coworker", "co-worker", "teammate", "workmate"),
    ("colleagues", "coworkers", "co-workers", "teammates"), ("job", "position", "role", "work"),
    ("salary", "pay", "wage", "income"), ("quit", "resign", "leave", "give notice"),
    ("fired", "dismissed", "sacked", "let go", "terminated"), ("raise", "pay rise", "pay raise", "salary increase"),
    ("employer", "company", "firm"), ("employee", "team member", "staff member", "worker"),
    ("interview", "job interview"), ("interviewer", "recruiter", "hiring manager"), ("write", "compose", "draft"),
    ("find", "get", "land", "search for", "look for"), ("prepare", "get ready", "practise", "prep"),
    ("begin", "start"), ("end", "close", "finish"), ("mistake", "error", "slip"), ("mistakes", "errors", "typos"),
    ("nervous", "anxious", "scared", "stressed", "worried"), ("explain", "describe", "talk about", "mention"),
    ("answer", "reply to", "respond to"), ("picture", "photo", "photograph", "headshot"), ("gap", "break", "pause"),
    ("grades", "marks", "GPA"), ("university", "college"), ("degree", "diploma"), ("studies", "education"),
    ("holidays", "vacation", "time off", "leave"), ("lonely", "alone", "isolated"), ("career", "profession"),
    ("home office", "remote work", "working from home"), ("remote", "home-based"), ("learn", "study"),
    ("course", "class", "training"), ("courses", "classes", "trainings"), ("skill", "ability"),
    ("skills", "abilities", "competences"), ("difficult", "hard", "bad", "terrible", "toxic"),
    ("handle", "deal with", "cope with", "manage"), ("improve", "make better", "polish"), ("many", "a lot of"),
    ("how long", "how many words", "what length"), ("cover letter", "application letter", "motivation letter"),
    ("wear", "put on"), ("clothes", "outfit"), ("tired", "exhausted"), ("sick", "ill", "unwell"), ("fake", "false"),
    ("scam", "fraud"), ("become", "train as", "work as", "be"), ("want", "would like"), ("choose", "pick", "decide on"),
    ("offer", "job offer"), ("negotiate", "bargain for", "discuss"), ("refuse", "reject", "turn down", "decline"),
    ("accept", "take"), ("lie", "cheat", "invent things"), ("abroad", "in another country", "overseas"),
    ("business", "company", "startup"), ("ask", "request"), ("team", "group"), ("lead", "manage", "run"),
    ("e-mail", "email", "mail", "message"), ("presentation", "talk", "slides"), ("meeting", "call"),
    ("meetings", "calls"), ("conflict", "argument", "dispute", "fight"), ("deadline", "due date"),
    ("references", "referees"), ("reference", "recommendation"), ("tips", "advice", "hints", "ideas"),
    ("good", "great", "strong", "decent"), ("best", "ideal", "right"), ("important", "urgent"), ("old", "aged"),
    ("programmer", "software developer", "coder"), ("children", "kids"), ("need", "require"), ("show", "present"),
    ("check", "review", "look over"), ("list", "name", "include"), ("stay", "remain", "keep"), ("test", "exam"),
    ("questions", "things"), ("ChatGPT", "AI"), ("posting", "ad", "advert", "vacancy"), ("money", "cash"),
    ("freelancer", "self-employed person", "contractor"), ("contract", "agreement"), ("graduation", "school"),
    ("change", "switch"), ("promotion", "promoted"), ("goal", "target"), ("goals", "targets", "aims"),
    ("task", "assignment"), ("tasks", "assignments", "things to do"), ("burned out", "burnt out", "burnout"),
    ("feedback", "an opinion"), ("criticism", "critique"), ("praise", "compliments"), ("hire", "recruit", "employ"),
    ("time", "hours"), ("balance", "combine", "juggle"), ("confident", "self-confident", "sure of myself"),
)  # fmt: skip
SHORT_FORMS = (
    ("I am", "I'm"), ("do not", "don't"), ("cannot", "can't"), ("What is", "What's"), ("it is", "it's"),
    ("I have", "I've"), ("I would", "I'd"), ("does not", "doesn't"), ("did not", "didn't"), ("you", "u"),
    ("are not", "aren't"), ("I will", "I'll"), ("please", "pls"), ("and", "&"),
)  # fmt: skip
SYSTEM_SENTENCES = (
    "You are a helpful assistant.", "You are a career coach.", "You are a career assistant.",
    "You give short, practical advice.", "You help people with resumes and interviews.", "Answer in plain English.",
    "Be concise.", "Be friendly and professional.", "Do not invent facts.", "Keep the answer under 100 words.",
    "You are a helpful and honest career advisor.", "Write for someone at the start of a career.",
    "You are an expert in hiring and job descriptions.", "Answer the user's question.",
    "Use simple words and complete sentences.", "You are an experienced recruiter.",
    "If you do not know the answer, say so.", "Use a list when it helps.", "Stay on the topic of work.",
    "You are llmpod.",
)  # fmt: skip
SMALL_WORDS = frozenset(
    ["a", "an", "the", "do", "does", "did", "is", "are", "to", "my", "i", "in", "on", "of", "for", "and", "can",
     "should", "me", "you", "it", "be", "with", "how", "what", "which", "where", "when", "have", "that", "this", "at",
     "or", "if", "am", "was", "we", "your", "they", "will", "would", "from", "by"]
)  # fmt: skip
STRANGER_SHAPES = (
    "What is {}?", "Tell me about {}.", "How does {} work?", "Why is {} so {}?", "Explain {} and {}.", "{} {} {}",
    "Write about {}.", "Where can I find {}?", "Who invented {}?", "Is {} better than {}?", "How big is {}?",
    "The {} and the {} and the {}.", "Translate {}.", "{}", "How many {} are there?", "Describe {}.", "How old is {}?",
    "When did {} begin?", "List three kinds of {}.", "Summarize {}: {} {} {}", "Who wrote {}?", "Do you like {}?",
    "{} jumps over {}.", "Why does {} have {}?", "What colour is {}?", "Who discovered {}?", "I saw {} near {}.",
    "What happens to {} when {} is gone?", "Compare {} with {}.", "How far is {} from {}?", "What causes {}?",
)  # fmt: skip
STRANGER_WORDS = (
    "water", "the moon", "bread", "a river", "gravity", "the ocean", "tigers", "music", "dinosaurs", "chemistry",
    "cars", "a bicycle", "blue", "lorem ipsum", "dolor sit amet", "the fox", "a lazy dog", "the war", "the king",
    "rain", "a train", "planets", "light", "trees", "gold", "a castle", "number seven", "paint", "football",
    "chess", "guitars", "a movie", "birds", "the sea", "coffee beans", "flowers", "a virus", "the heart",
    "philosophy", "ancient Rome", "Japan", "Africa", "the desert", "a volcano", "snow", "electricity", "the internet",
    "a database", "Linux", "a compiler", "matrix", "a triangle", "prime numbers", "x", "foo", "bar", "asdf",
    "hello world", "sentence", "dragons", "a ghost", "the sun", "stars", "soup", "cheese", "my cat", "fish", "horses",
    "Einstein", "Shakespeare", "the Eiffel Tower", "the Roman Empire", "Napoleon", "Brazil", "Canada", "an elephant",
    "the brain", "a black hole", "photons", "quantum physics", "DNA", "cells", "a star", "Mars", "earthquakes",
    "the piano", "Mozart", "tennis", "basketball", "the Olympic games", "the Bible", "a bridge", "airplanes", "rockets",
    "batteries", "magnets", "oxygen", "iron", "whales", "sharks", "spiders", "butterflies", "a garden", "apples",
    "potatoes", "chocolate", "wine", "tea", "sugar", "salt", "mountains", "lakes", "islands", "the weather", "clouds",
)  # fmt: skip
FOREIGN_WORDS: list[str] = re.findall(
    r"\w+",
    "de la el en que los las por con una es para como más pero este qué cómo está puedo trabajo hola gracias "
    "le les des est dans pour que qui sur avec pas vous nous je bonjour merci comment quel où être faire "
    "der die das und ist nicht ein eine mit auf für ich sie wir wie was haben werden guten Tag bitte danke "
    "il di che non per una sono come questo della ciao grazie lavoro o um uma não você obrigado het een van ik "
    "niet och att det som jag nie się na jest dzień dobry ve bir bu için ne merhaba sit amet consectetur adipiscing "
    "elit sed eiusmod tempor incididunt labore dolore magna aliqua",
)
CODE = (
    "def {0}({1}):\n    return {1} + {2}", "for (int {0} = 0; {0} < {2}; {0}++) {{ {1}(); }}", "SELECT {0} FROM {1};",
    "<div class=\"{0}\">{1}</div>", "import {0}\nprint({0}.{1})", "{{\"{0}\": {2}, \"{1}\": null}}", "{0} = [{2}, {2}]",
    "const {0} = ({1}) => {1};", "#include <{0}.h>", "sudo apt install {0} && {1} --{0}", "if {0}: {1}()", "https://{0}.com/{1}",
)  # fmt: skip
SCRIPTS = ((0x3B1, 0x3C9), (0x430, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A), (0x905, 0x939), (0x3041, 0x3096),
           (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0xE0, 0xFF))  # fmt: skip
LONGEST_STRANGER = 600  # characters of the kinds that cost about a token each


def vary(question: str, rng: Random) -> str:
    """The same question as somebody else would type it."""
    text = _reframed(question, rng) if rng.random() < 0.4 else question
    text = _with_synonyms(text, rng)
    if rng.random() < 0.3:
        text = _with_a_short_form(text, rng)
    words = text.split()
    words = _keywords(words, rng) if rng.random() < 0.2 else _with_gaps(words, rng)
    if rng.random() < 0.3:
        words = _with_a_typo(words, rng)
    text = " ".join(words)
    if rng.random() < 0.4:
        text = text.rstrip("?.!")
    if rng.random() < 0.2:
        text = _preamble(rng) + text
    if rng.random() < 0.15:
        text = rng.choice(GREETINGS) + text
    if rng.random() < 0.12:
        text += rng.choice(CLOSINGS)
    if rng.random() < 0.35:
        return text.lower()
    return text[:1].upper() + text[1:] if rng.random() < 0.5 else text


def system_message(rng: Random) -> str:
    return " ".join(rng.sample(SYSTEM_SENTENCES, rng.randint(1, 4)))


def stranger(rng: Random) -> str:
    """A prompt that no entry of the corpus is about: other subjects, other languages, code, noise; sometimes long."""
    kind = rng.random()
    if kind < 0.45:
        text = " ".join(_strange_sentence(rng) for _ in range(_length(rng, 12)))
    elif kind < 0.55:
        text = " ".join(_foreign_word(rng) for _ in range(_length(rng, 100)))
    elif kind < 0.63:
        names = [_noise("abcdefghijklmnopqrstuvwxyz_", rng, 7) for _ in range(2)]
        text = "\n".join(rng.choice(CODE).format(*names, rng.randint(0, 999)) for _ in range(_length(rng, 8)))
    elif kind < 0.83:
        text = _repeated(rng)
    elif kind < 0.92:
        alphabet = rng.choice(("0123456789", "0123456789+-*/= .,", "!?.,;:-()#*/ ", "abcdefghijklmnopqrstuvwxyz "))
        text = _noise(alphabet, rng, LONGEST_STRANGER // 3)
    else:
        first, last = rng.choice(SCRIPTS)
        text = "".join(chr(rng.randint(first, last)) for _ in range(_length(rng, LONGEST_STRANGER // 6)))
    return text.lower() if rng.random() < 0.2 else text


def _length(rng: Random, longest: int) -> int:
    """From one to longest; short ones are as likely as long ones are rare."""
    return max(1, round(math.pow(longest, rng.random())))


def _noise(alphabet: str, rng: Random, longest: int) -> str:
    return "".join(rng.choices(alphabet, k=_length(rng, longest)))


def _repeated(rng: Random) -> str:
    """One letter, word or sentence again and again."""
    kind = rng.random()
    if kind < 0.4:
        unit = rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!?-_#*äé漢🙂 \n")
    elif kind < 0.6:
        unit = _noise("abcdefghijklmnopqrstuvwxyz0123456789", rng, 5) + rng.choice(("", " "))
    else:
        unit = (_strange_word(rng) if kind < 0.8 else _strange_sentence(rng)) + " "
    return unit * max(1, _length(rng, LONGEST_STRANGER) // len(unit))


def _foreign_word(rng: Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(FOREIGN_WORDS)
    return "".join(rng.choice("bcdfgklmnprstvz") + rng.choice("aeiouéü") for _ in range(rng.randint(1, 4)))


def _strange_sentence(rng: Random) -> str:
    shape = rng.choice(STRANGER_SHAPES)
    return shape.format(*(_strange_word(rng) for _ in range(shape.count("{}"))))


def _strange_word(rng: Random) -> str:
    return rng.choice(STRANGER_WORDS) if rng.random() < 0.75 else _foreign_word(rng)


def _preamble(rng: Random) -> str:
    return rng.choice(PREAMBLES).format(**{name: rng.choice(choices) for name, choices in FILLINGS.items()})


def _reframed(question: str, rng: Random) -> str:
    """ "How do I quit?" as "What is the best way to quit?": the frame says little about the subject."""
    for opening, frames in (
        (r"How (?:do|can|should) I ", HOW_FRAMES),
        (r"(?:Should|Can|May) I ", SHOULD_FRAMES),
        (r"What (?:is|are) (?:an? |the )?", WHAT_FRAMES),
    ):
        found = re.match(opening + r"([^,?]+)\?$", question)
        if found:
            return rng.choice(frames).format(found[1])
    return question


def _with_synonyms(text: str, rng: Random) -> str:
    """Each word that has others like it becomes, now and then, one of them."""

    def other(match: re.Match[str]) -> str:
        return rng.choice(_OTHERS[match[0].lower()]) if rng.random() < 0.35 else match[0]

    return _KNOWN.sub(other, text)


def _with_a_short_form(text: str, rng: Random) -> str:
    long, short = rng.choice([pair for pair in SHORT_FORMS if pair[0] in text] or [("", "")])
    if not long:
        return text
    text = text.replace(long, short)
    return text.replace("'", "") if rng.random() < 0.4 else text


def _keywords(words: list[str], rng: Random) -> list[str]:
    """Only the words that carry the subject, as for a search engine."""
    kept = [word.rstrip("?.!,") for word in words if word.lower().rstrip("?.!,") not in SMALL_WORDS]
    if len(kept) > 3 and rng.random() < 0.4:
        del kept[rng.randrange(len(kept))]
    if rng.random() < 0.25:
        rng.shuffle(kept)
    return kept or words


def _with_gaps(words: list[str], rng: Random) -> list[str]:
    """Some small words are lost, and now and then one that matters."""
    if len(words) < 4:
        return words
    share = rng.choice((0.0, 0.0, 0.15, 0.35))
    kept = [word for word in words if word.lower() not in SMALL_WORDS or rng.random() >= share]
    if len(kept) >= 5 and rng.random() < 0.25:
        del kept[rng.randrange(len(kept))]
    return kept or words


def _with_a_typo(words: list[str], rng: Random) -> list[str]:
    """One letter of one longer word is swapped with the next, doubled, lost or replaced."""
    long = [i for i, word in enumerate(words) if len(word) >= 5]
    if not long:
        return words
    at = rng.choice(long)
    word = words[at]
    i = rng.randrange(1, len(word) - 2)
    slips = (
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + word[i] + word[i:],
        word[:i] + word[i + 1 :],
        word[:i] + rng.choice("aeiourstn") + word[i + 1 :],
    )
    return [*words[:at], rng.choice(slips), *words[at + 1 :]]


_OTHERS = {
    word.lower(): tuple(other for group in SYNONYMS if word in group for other in group if other != word)
    for group in SYNONYMS
    for word in group
}
_KNOWN = re.compile(
    r"\b(?:" + "|".join(re.escape(word) for word in sorted(_OTHERS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)
