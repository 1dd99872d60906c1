"""Other people's ways of asking: what turns one written question into many, so that the model listens for the topic
and not for the exact words."""

from random import Random

GREETINGS = (
    "Hi, ", "Hello, ", "Hey, ", "Hello! ", "Hi there. ", "Good morning. ", "Please tell me: ", "Quick question: ",
    "I have a question. ", "Can you help me? ", "I need some advice. ", "Question: ", "So, ", "Please help. ",
)  # fmt: skip
CLOSINGS = (
    " Thanks!", " Thank you.", " Please.", " Please keep it short.", " Please explain.", " Any advice?",
    " Thanks in advance!", " Give me a short answer.", " Answer in detail.", " I would like to know more.",
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
     "should", "me", "you", "it", "be", "with"]
)  # fmt: skip
STRANGER_SHAPES = (
    "What is {}?", "Tell me about {}.", "How does {} work?", "Why is {} so {}?", "Explain {} and {}.", "{} {} {}",
    "Write about {}.", "Where can I find {}?", "Who invented {}?", "Is {} better than {}?",
    "The {} and the {} and the {}.", "Translate {}.", "{}", "How many {} are there?", "Write a story about {} and {}.",
    "When did {} begin?", "List three kinds of {}.", "Summarize {}: {} {} {}",
)  # fmt: skip
STRANGER_WORDS = (
    "water", "the moon", "bread", "a river", "gravity", "the ocean", "tigers", "music", "a poem", "dinosaurs",
    "chemistry", "cars", "a bicycle", "blue", "lorem ipsum", "dolor sit amet", "the fox", "a lazy dog", "history",
    "the war", "the king", "pizza", "rain", "a train", "robots", "planets", "light", "trees", "gold", "a castle",
    "number seven", "the stock market", "bitcoin", "paint", "football", "chess", "guitars", "a movie", "birds",
    "the sea", "coffee beans", "flowers", "medicine", "a virus", "the heart", "philosophy", "ancient Rome", "Japan",
    "Africa", "the desert", "a volcano", "snow", "electricity", "the internet", "a database", "Linux", "a compiler",
    "matrix", "an equation", "a triangle", "prime numbers", "x", "test", "foo", "bar", "asdf", "hello world",
    "sentence", "dragons", "a ghost", "the sun", "stars", "a recipe", "soup", "cheese", "my cat", "fish", "horses",
    "the law", "taxes",
)  # fmt: skip


def vary(question: str, rng: Random) -> str:
    """The same question as somebody else would type it."""
    words = question.split()
    if len(words) >= 5 and rng.random() < 0.2:
        words = _without_one_small_word(words, rng)
    if rng.random() < 0.25:
        words = _with_a_typo(words, rng)
    text = " ".join(words)
    if rng.random() < 0.35:
        text = text.rstrip("?.!")
    if rng.random() < 0.15:
        text = rng.choice(GREETINGS) + text
    if rng.random() < 0.1:
        text += rng.choice(CLOSINGS)
    return text.lower() if rng.random() < 0.35 else text


def system_message(rng: Random) -> str:
    return " ".join(rng.sample(SYSTEM_SENTENCES, rng.randint(1, 4)))


def stranger(rng: Random) -> str:
    """A prompt that no entry of the corpus is about, sometimes a long one."""
    sentences = 1 if rng.random() < 0.7 else rng.randint(2, 40)
    return " ".join(_strange_sentence(rng) for _ in range(sentences))


def _strange_sentence(rng: Random) -> str:
    shape = rng.choice(STRANGER_SHAPES)
    return shape.format(*(_strange_word(rng) for _ in range(shape.count("{}"))))


def _strange_word(rng: Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(STRANGER_WORDS)
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(1, 9)))


def _without_one_small_word(words: list[str], rng: Random) -> list[str]:
    small = [i for i, word in enumerate(words) if word.lower() in SMALL_WORDS]
    if not small:
        return words
    gone = rng.choice(small)
    return words[:gone] + words[gone + 1 :]


def _with_a_typo(words: list[str], rng: Random) -> list[str]:
    """One letter of one longer word is swapped with the next, doubled or lost."""
    long = [i for i, word in enumerate(words) if len(word) >= 5]
    if not long:
        return words
    at = rng.choice(long)
    word = words[at]
    i = rng.randrange(1, len(word) - 2)
    slips = (word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i] + word[i:], word[:i] + word[i + 1 :])
    return [*words[:at], rng.choice(slips), *words[at + 1 :]]
