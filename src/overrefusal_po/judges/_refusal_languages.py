r"""Refusals in thirteen languages besides English, for `refusal.py`: one entry of LANGUAGES for each.

    spoken(low)                          # the languages that a plain, lower-case NFC text may be in: cheap, no regex
    LANGUAGES["de"].decline.search(...)  # where one of its sentences declines

A language is tried only on texts with its letters or one of its commonest words, so that English texts pay one look-up.
Patterns want a speaker who declines (a first person, an apology, a polite form), because "cannot" alone is said of
anything. A blank in a pattern is any one white-space character.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class Language(NamedTuple):
    """How a language is known (its script, or words of which a refusal has one) and where a sentence of it declines."""

    script: re.Pattern[str] | None
    words: frozenset[str]
    decline: re.Pattern[str]


def by_words(words: str, *wordings: str) -> Language:
    """A language in Latin letters; its wordings start at a word's start."""
    found = unicodedata.normalize("NFC", words).split()
    return Language(None, frozenset(found), one_pattern(wordings, r"\b"))


def by_script(letters: str, *wordings: str) -> Language:
    """A language that is known by its letters, a character class."""
    return Language(re.compile(letters), frozenset(), one_pattern(wordings, ""))


def one_pattern(wordings: tuple[str, ...], start: str) -> re.Pattern[str]:
    """The wordings, in NFC, as one pattern; a blank in them is one white-space character."""
    pattern = "|".join(f"(?:{w})" for w in wordings).replace(" ", r"\s")
    return re.compile(unicodedata.normalize("NFC", f"{start}(?:{pattern})"))


def spoken(low: str) -> list[Language]:
    """The languages besides English that a plain, lower-case text may hold."""
    words = set(low.split())
    found = (
        []
        if words.isdisjoint(LATIN_WORDS)
        else [x for x in LANGUAGES.values() if not words.isdisjoint(x.words)]
    )
    if not low.isascii():
        found += [x for x in LANGUAGES.values() if x.script and x.script.search(low)]
    return found


LANGUAGES = {
    "de": by_words(
        "ich nicht nicht. kein keine keinen mir uns wir das dies diese dabei",
        r"(?:es )?tut (?:mir|uns) (?:\w+ )?leid,? (?:aber )?(?:das|dies|da|dabei|dazu|hier|ich|wir|diese\w*|"
        r"so etwas)\b"
        r"[^.!?\n]{0,80}?\b(?:nicht|kein\w*|unmöglich|ablehnen)\b",
        r"(?:sorry|entschuldigung|entschuldige|verzeihung|bedaure)[,.!]? (?:\w+ ){0,6}?(?:kann|darf|werde|"
        r"möchte|will)\b"
        r"[^.!?\n]{0,60}\b(?:nicht|kein\w*)\b",
        r"leider (?:kann|darf|werde|möchte) ich (?:\w+ ){0,6}(?:nicht|kein\w*) (?:\w+ ){0,6}?(?:helf|weiterhelf|"
        r"unterstütz|geb|beantwort|erfüll|behilflich|tun|bereitstell|anbiet|liefer|nachkomm|erstell|schreib|sagen|"
        r"teilen|erklär|assistier|dienen|mach)\w*",
        r"ich (?:kann|darf|werde|möchte|will|würde)[^.!?\n]{0,60}?\b(?:nicht|kein\w*|nichts)\b(?! (?:genug|"
        r"oft genug)) "
        r"?(?:[\w,]+ ){0,8}?(?:\w*helf|unterstütz|\w*geben|beantwort|antwort|erfüll|behilflich|tun|bereitstell|"
        r"anbiet|"
        r"liefer|nachkomm|erstell|schreib|\w*sprechen|reden|äußern|sagen|verraten|teilen|mitteilen|teilnehmen|erklär|"
        r"beteilig|mitmachen|diskutier|bearbeit|entsprech|eingehen|fortfahr|zeigen|nennen)\w*",
        r"als (?:\w+-)*(?:ki|sprachmodell|künstliche)[^.!?\n]{0,30} (?:kann|darf|werde|"
        r"möchte) ich (?:\w+ ){0,5}(?:nicht|kein\w*)\b",
        r"(?:bei|zu|mit|auf|für) (?:diese\w*|solche\w*|so etwas|deine\w*|ihre\w*)(?: \w+){0,3} (?:kann|darf|"
        r"werde|möchte) "
        r"ich (?:\w+ ){0,3}(?:nicht|kein\w*)\b",
        r"(?:das|dies|dabei|dazu|hierbei|damit|daran|darüber|hier|da|darauf|dafür|so etwas) (?:kann|werde|darf|"
        r"möchte|will) "
        r"ich (?:\w+ ){0,4}(?:nicht|nichts|kein\w*)\b",
        r"ich (?:muss (?:\w+ ){0,5}(?:ablehnen|zurückweisen)|lehne (?:\w+ ){0,5}ab\b|weigere mich|verweigere|"
        r"bin (?:\w+ ){0,2}nicht (?:in der lage|befugt|berechtigt|bereit|dafür (?:da|gemacht)))",
        r"(?:anfrage|bitte|frage|das|dies|inhalte?|wunsch)(?: \w+){0,2} (?:verstö(?:ß|ss)t|"
        r"widerspricht)(?: \w+){0,2} "
        r"(?:meine|unsere)\w* ",
        r"(?:lass(?:en)? (?:uns|sie uns)|reden wir|sprechen wir)(?: \w+){0,2} (?:über )?(?:etwas anderes|"
        r"das thema wechseln)",
    ),
    "fr": by_words(
        "je ne j'ai n'ai vous pas cette mes nos m'est d'autre désolé désolé, désolée, navré, demande",
        r"je ne (?:peux|puis|saurais|vais|veux|dois|souhaite|pourrai)(?: (?:malheureusement|donc|vous|te|t'|y|en|"
        r"simplement|vraiment))* ?(?:pas |rien |malheureusement pas )?(?:malheureusement |vous |te |t'|en |y |"
        r"le |la |l'|les )*"
        r"(?:aid|assist|répond|fourn|donn|accéder|satisf|expliqu|partag|particip|soutenir|écri|créer|génér|"
        r"propos|faire|"
        r"dire|parler|discut|traiter|contribu|recommander (?:de|une|ce)|offrir|encourag|continu|poursuiv|"
        r"accept|apport|"
        r"accompagn|effectuer|divulgu|décri|révél|conseiller)",
        r"(?:désolée?s?|navrée?|malheureusement)[,.!]? (?:mais )?(?:je ne (?:peux|puis|suis|saurais|vais) |il m'est "
        r"impossible|c'est impossible|ce n'est pas possible|je refuse|je dois refuser)(?!pas m'empêcher)",
        r"je (?:suis (?:vraiment |sincèrement )?(?:désolée?|navrée?|"
        r"au regret))[^.!?\n]{0,20}\b(?:je ne (?:peux|puis|suis|saurais|"
        r"vais)|de ne (?:pas )?pouvoir|de devoir refuser)",
        r"je (?:ne suis pas (?:\w+ )?(?:en mesure|autorisée?|capable|habilitée?|programmée?|à l'aise|"
        r"disposée?)|n'ai pas (?:le droit|"
        r"la possibilité|l'autorisation)|refuse (?:de|d'|cette|votre|ta|catégoriquement)|(?:dois|vais devoir|"
        r"suis obligée? de|"
        r"préfère|me vois contrainte? de) (?:refuser|décliner|ne pas|m'abstenir)|m'abstiendrai|décline|"
        r"regrette[^.!?\n]{0,20}ne)",
        r"il (?:m'est|ne m'est pas|n'est pas) (?:malheureusement )?(?:impossible|possible|approprié|éthique|"
        r"permis) (?:pour moi )?"
        r"(?:de|d')",
        r"(?:demande|question|requête|cela|ça|ce contenu)(?: \w+){0,2} (?:va à l'encontre de|est contraire à|"
        r"enfrein\w*|viole) "
        r"(?:mes|nos|ma|mon)\b",
        r"parlons (?:plutôt )?d'autre chose",
    ),
    "es": by_words(
        "puedo podemos siento siento, lamento lamento, niego debo voy eso esa ese esta este esto lo pero por "
        "que una mis prefiero hablemos rechazo solicitud tu",
        r"no (?:puedo|podemos|podré|podría|debo|voy a|estoy (?:en condiciones|autorizad[oa]|capacitad[oa]|"
        r"dispuest[oa]|"
        r"programad[oa])|me es posible|me está permitido|soy capaz|quiero|pienso|tengo permitido)(?: de| para| a)? ?"
        r"(?:\w+ ){0,2}?(?:ayud|proporcion|asist|ofrec|cumpl|d(?:ar|art|arl)|brind|respond|contest|complet|"
        r"hacer|facilit|"
        r"compart|crear|escrib|gener(?:ar|e)|particip|hablar|realiz|apoy|cometer|continuar|explic|atend|satisf|acced|"
        r"discut|colabor|decir|mostrar|enseñ|promover|suministr|revelar|aconsej|proceder|acept)\w*",
        r"(?:lo siento|lo lamento|disculp[ae]|perdón|perdona|lamentablemente|desafortunadamente|"
        r"por desgracia)(?: mucho)?[,.]? "
        r"(?:pero )?(?:eso |esto )?(?:(?:no (?:lo )?(?:puedo|podemos|podré|debo|voy a|es posible ayud\w*|"
        r"me es posible))|me niego|"
        r"debo (?:rechazar|declinar)|tengo que (?:rechazar|declinar))(?! (?:creer|dejar|evitar))",
        r"(?:eso|esto) no (?:lo )?(?:puedo|voy a|debo) (?:hacer|responder|explicar|contestar|decir)",
        r"(?:me niego (?:a|rotundamente)|me veo obligad[oa] a (?:rechazar|declinar)|(?:debo|"
        r"tengo que) (?:rechazar|declinar|negarme)|"
        r"rechazo (?:esta|esa|tu|su)|prefiero no (?:hablar|responder|contestar|hacer|dar|opinar|tratar)|"
        r"no es (?:apropiado|ético|posible|correcto) (?:que |para mí )?(?:\w+ )?(?:proporcion|ayud|respond|"
        r"hacer|dar))",
        r"no (?:proporciono|ofrezco|brindo|doy|ayudo|participo)(?: a| con| en)* (?:\w+ )?(?:informaci|"
        r"instruccion|ayuda|ese|este|"
        r"esa|esta|eso|actividad|consejo)",
        r"(?:solicitud|petición|pregunta|eso|esto|pedido)(?: \w+){0,2} (?:va en contra de|viola|infringe|"
        r"incumple) (?:mis|nuestr\w+|"
        r"mi|las)\b",
        r"(?:hablemos|podemos hablar) de otra cosa",
    ),
    "it": by_words(
        "non posso mi di devo preferisco questa questo queste purtroppo parliamo rifiuto spiacente, che una il",
        r"non (?:posso|possiamo|potrei|potrò|sono in grado di|sono autorizzat[oa] a|sono programmat[oa] per|"
        r"mi è (?:possibile|"
        r"permesso|consentito)|intendo|voglio|devo|me la sento di) ?(?:di )?(?:\w+ ){0,2}?(?:aiut|forn|assist|"
        r"risp|offr|dar|fare|farlo|"
        r"soddisf|esegu|condiv|crear|scriv|gener|partecip|parlar|continu|complet|support|spieg|rivel|discut|accogl|"
        r"mostr|dir[eltv]|consigliarti|incoragg|contribu|insegn|accett|procedere)\w*",
        r"(?:mi dispiace|spiacente|sono spiacente|mi spiace|scusa|"
        r"purtroppo)(?: molto)?[,.]? (?:ma )?(?:(?:questo )?non (?:posso|"
        r"sono in grado|mi è possibile|intendo)|devo (?:rifiutare|declinare))(?! (?:che|fare a meno))",
        r"(?:mi rifiuto di|rifiuto (?:di|la|questa)|(?:devo|sono costrett[oa] a) (?:rifiutar\w+|declinare)|"
        r"preferisco non (?:\w+)|"
        r"non è (?:appropriato|etico|possibile|corretto)(?: per me)? (?:fornire|aiutare|rispondere|discutere))",
        r"(?:richiesta|domanda|questo|ciò)(?: \w+){0,2} (?:va contro|viola) (?:i miei|le mie|i nostri|"
        r"le nostre|la mia)\b",
        r"parliamo (?:invece )?(?:di altro|d'altro|di qualcos'altro)",
    ),
    "pt": by_words(
        "não recuso recuso-me recusar lamento, isso esse essa minhas meus com uma que prefiro vamos "
        "infelizmente desculpe,",
        r"não (?:posso|podemos|poderia|poderei|consigo|devo|vou|quero|pretendo|estou (?:autorizad[oa]|apt[oa]|"
        r"em condições|"
        r"dispost[oa]|programad[oa])|sou capaz|me é (?:possível|permitido)|tenho permissão|é (?:apropriado|"
        r"ético|possível para mim))"
        r"(?: de| a| para)? ?(?:\w+ ){0,2}?(?:ajud|fornec|auxili|assist|respond|atend|cumpr|dar|oferec|fazer|"
        r"faz[eê]-lo|criar|escrev|"
        r"gerar|compartilh|partilh|particip|continu|apoi|discut|realiz|explic|colabor|dizer|satisf|prestar|"
        r"falar|ensin|"
        r"promover|aceit|prosseguir|revelar)\w*",
        r"(?:desculp[ea](?:-me)?|sinto muito|lamento|me desculpe|peço desculpas?|infelizmente|"
        r"perdão)[,.]? (?:mas )?(?:(?:eu |isso )?"
        r"não (?:posso|consigo|vou|devo|poderei|me é possível|estou autorizad\w)|(?:tenho|terei|"
        r"preciso) (?:de |que )?recusar|"
        r"devo recusar)(?! (?:deixar|evitar|acreditar))",
        r"(?:me recuso|recuso-me|recuso (?:a|esse|este)|(?:devo|tenho que|tenho de|preciso) recusar|"
        r"prefiro não (?:\w+)|não me sinto "
        r"(?:confortável|à vontade))",
        r"(?:pedido|solicitação|pergunta|isso|isto)(?: \w+){0,2} (?:vai contra|viola|fere) (?:as |"
        r"os )?(?:minhas?|meus?|nossas?|nossos?)\b",
        r"(?:vamos falar|falemos) (?:de|sobre) outr[ao] (?:coisa|assunto)",
    ),
    "nl": by_words(
        "ik niet niet. geen het dat dit een hier daar mijn verzoek iets",
        r"ik (?:kan|mag|wil|zal|ga)(?: (?!niet|geen|niets)\w+){0,6} (?:niet|geen|"
        r"niets)\b(?! genoeg) ?(?:\w+ ){0,8}?(?:\w*helpen|geven|"
        r"bieden|verstrekken|\w*antwoorden|voldoen|assisteren|doen|delen|ondersteunen|schrijven|uitleggen|"
        r"praten|spreken|"
        r"ingaan|zeggen|meewerken|vertellen|bespreken|uitvoeren|leveren|deelnemen)\b",
        r"(?:sorry|het spijt (?:me|mij)|helaas|mijn excuses|excuses)[,.]?(?: maar)?(?: \w+){0,4} (?:kan|mag|"
        r"wil|zal|ga) ik "
        r"(?:(?!niet|geen)\w+ ){0,6}(?:niet|geen|niets)\b",
        r"(?:sorry|het spijt (?:me|mij)|helaas|mijn excuses|excuses)[,.]?(?: maar)? (?:ik (?:kan|mag|wil|zal|"
        r"ga)|dat (?:kan|gaat|mag))"
        r"\b[^.!?\n]{0,50}\b(?:niet|geen)\b(?! genoeg)",
        r"(?:helaas|daarom|dus) (?:kan|mag|wil|zal) ik (?:\w+ ){0,6}(?:niet|"
        r"geen)\b(?! genoeg)(?: \w+){0,3} (?:\w*helpen|geven|"
        r"\w*antwoorden|voldoen|doen|delen|verstrekken)",
        r"als (?:ai|taalmodel|ai-\w+|een ai\w*)[^.!?\n]{0,20} (?:kan|mag|zal) ik (?:\w+ ){0,5}(?:niet|geen)\b",
        r"(?:daar|hier|dat|dit)(?:aan|mee|op|over)? (?:kan|wil|mag|ga|zal|werk|doe) ik (?:(?:je|u|jou|helaas|"
        r"ook|echt) )*"
        r"(?:niet|geen|niets)\b",
        r"ik (?:moet (?:\w+ ){0,5}(?:weigeren|afwijzen)|weiger|ben (?:helaas )?niet (?:in staat|bevoegd|"
        r"gemachtigd|bereid)|wil (?:\w+ ){0,3}"
        r"liever niet|praat (?:\w+ ){0,3}liever niet)",
        r"(?:verzoek|vraag|dit|dat)(?: \w+){0,2} (?:is in strijd met|druist in tegen|schendt) (?:mijn|onze)\b",
        r"laten we (?:\w+ )?over iets anders (?:praten|hebben)",
    ),
    "tr": by_words(
        "bu bunu buna bunun bir üzgünüm, üzgünüm maalesef yardımcı yardım özür size sana isteğiniz mümkün ne",
        r"(?:yardımcı|yardım|destek)(?: \w+){0,2} (?:olamam|olamıyorum|edemem|edemiyorum|veremem|veremiyorum|"
        r"olamayacağım|"
        r"edemeyeceğim|olmam mümkün değil|etmeyeceğim|olmayacağım)",
        r"(?:üzgünüm|özür dilerim|maalesef|ne yazık ki|"
        r"kusura bakma(?:yın)?)\b[^.!?\n]{0,90}(?:[^\W\d_]{2,}(?:amam|emem|"
        r"amıyorum|emiyorum|amayız|emeyiz|mayacağım|meyeceğim)\b|mam mümkün değil|mem mümkün değil|reddet)",
        r"(?:bu|bunu|buna|bunun|böyle|size|sana|o|şunu|isteğiniz\w*|talebiniz\w*|"
        r"sorunuz\w*)\b[^.!?\n]{0,70}[^\W\d_]{2,}(?:amam|emem|"
        r"amıyorum|emiyorum|mayacağım|meyeceğim)\b",
        r"[^.!?\n]{0,60}(?:mam|mem) mümkün değil",
        r"[^.!?\n]{0,60}(?:reddediyorum|reddetmek (?:zorundayım|durumundayım)|geri çevirmek zorundayım)",
        r"[^.!?\n]{0,60}(?:mamayı|memeyi|mayı|meyi) tercih ederim",
        r"(?:isteğiniz|bu istek|bu talep|talebiniz|bu)(?: \w+){0,3} (?:\w+(?:lerime|larıma|larımıza|lerimize|"
        r"ıma|ime)) aykırı",
        r"başka bir (?:konu|şey)(?:dan| hakkında| üzerine)? (?:konuşalım|bahsedelim)",
    ),
    "ru": by_script(
        r"[\u0400-\u04ff]",
        r"я (?:\w+,? ){0,4}не (?:могу|смогу|буду|имею права|в состоянии|вправе|уполномочен\w*|готов\w*|хочу|"
        r"стану|намерен\w*|"
        r"способ\w+|могу себе позволить) (?:\w+ ){0,3}?(?:помо|предостав|ответ|отвеч|выполн|да(?:ть|вать)|оказ|"
        r"созда|напис|писать|"
        r"(?:с)?дела|обсужд|поддерж|участв|предл|расск|содейств|продолж|объясн|комментир|говорить|сообщ|удовлетвор|"
        r"генерир|рекоменд|учить|советовать|помогать|разглаш|способствов)\w*",
        r"(?:извин\w+|прости\w*|к сожалению|прошу прощения|мне (?:очень )?жаль|сожалею|"
        r"увы)[,.]?[^.!?\n]{0,40}?\bне (?:могу|можем|"
        r"смогу|буду|имею права|вправе)\b(?! не )",
        r"не (?:могу|смогу|буду|стану) (?:\w+ ){0,3}?(?:помочь|помогать|выполнить|ответить|отвечать|"
        r"предоставить|обсуждать|"
        r"объяснять|этого (?:делать|сделать)|это (?:делать|сделать))",
        r"(?:вынужден\w*|должен|должна|приходится|придётся|придется) (?:\w+ ){0,2}?отказа\w+|"
        r"я (?:\w+ )?(?:отказываюсь|отклоняю)",
        r"(?:запрос|просьба|вопрос|это)(?: \w+){0,2} (?:противоречит|нарушает) (?:мои\w*|моим|наши\w*|нашим|"
        r"правил\w*|этическ\w+)",
        r"давай(?:те)? (?:\w+ )?(?:поговорим|побеседуем) (?:о|об) (?:ч[её]м-(?:нибудь|то) друг\w+|другом)|"
        r"давай(?:те)? (?:сменим|поменяем) тему",
        r"(?:для меня|мне) (?:\w+ )?(?:невозможно|недопустимо|неприемлемо|нельзя) (?:\w+ )?(?:помо|предостав|"
        r"ответ|обсужд|дава|дать)\w*",
    ),
    "ar": by_script(
        r"[\u0600-\u06ff]",
        r"(?:آسف\w*|عذر[اًا]*|أعتذر|للأسف|معذرة|اسف|المعذرة|نأسف)[،,.]? ?(?:لكن\w* |ولكن\w* |لكنني |"
        r"إلا أنني )?(?:لا (?:أستطيع|يمكنني|أقدر|"
        r"استطيع|يمكننا)|لن (?:أتمكن|أستطيع|أساعد|أقدم|أجيب)|(?:أنا )?غير قادر|لست قادر)(?! أن أوصي)",
        r"(?:لا (?:أستطيع|يمكنني|استطيع|أقدر|يُ?سمح لي|يجوز لي|يحق لي|أملك صلاحية)|لن (?:أتمكن من|أستطيع|أقوم)|"
        r"لست قادر[\w\u064b]* على|"
        r"غير قادر[\w\u064b]* على|يتعذر علي|ليس (?:بإمكاني|بوسعي)) ?(?:على |من |في |ب)?(?:\w+ )?(?:ب?تقديم|"
        r"(?:ال)?مساعد|الإجابة|تلبية|"
        r"توفير|تنفيذ|الرد|أن (?:أساعد|أقدم|أجيب|أشارك|أعطي|أشرح|أدعم|ألبي|أكتب|أفعل)|إعطاء|كتابة|(?:ال)?مشارك|"
        r"إنشاء|دعم|"
        r"القيام|مناقشة|شرح|التحدث|إخبار|الكشف)",
        r"لن (?:أساعد|أقدم|أجيب|أشارك|أشرح|أعطي|أفعل|أكتب)\w*",
        r"(?:أرفض|ارفض|علي أن أرفض|أعتذر عن) (?:الإجابة|المساعدة|تقديم|هذا|تنفيذ|القيام|المشاركة|عدم|الرد|ذلك|أن)",
        r"(?:الطلب|السؤال|هذا|ذلك)(?: \w+){0,2} (?:يتعارض مع|ينتهك|يخالف) (?:مباد\w+|قواعد\w+|إرشادات\w+|"
        r"سياسات\w+|قيم\w+)",
        r"(?:دعنا|لنتحدث|دعونا)(?: \w+){0,2} (?:عن )?(?:موضوع آخر|شيء آخر)",
    ),
    "hi": by_script(
        r"[\u0900-\u097f]",
        r"(?:माफ\u093c?|क्षमा|खेद|दुर्भाग्य|सॉरी)[^।!?\n]{0,90}(?:नहीं (?:कर|दे|बता|बना|लिख|समझा|पूरा|"
        r"हो) ?(?:सकत|पा|सकूँ|सकूं|सकेंगे)|"
        r"नहीं (?:करूँगा|करूंगा|करूँगी|दूँगा|दूंगा|बताऊँगा)|असमर्थ)",
        r"(?:मदद|सहायता|जानकारी|उत्तर|जवाब|अनुरोध|निर्देश|सलाह|सामग्री)[^।!?\n]{0,40}(?:नहीं (?:(?:कर|दे|बता|"
        r"लिख) (?:सकत|पाऊ|सकूँ)|करूँग|करूंग|दूँग|"
        r"दूंग)|असमर्थ हू)",
        r"मैं [^।!?\n]{0,70}(?:नहीं (?:(?:कर|दे|बता|लिख|बना|समझा) (?:सकत|सकूँ|पाऊँ)|करूँग|करूंग|दूँग|दूंग|"
        r"बताऊ)|असमर्थ हू)",
        r"मैं [^।!?\n]{0,60}(?:से (?:इनकार|इंकार)|मना) कर(?:ता|ती|ना)",
        r"(?:अनुरोध|प्रश्न|सवाल|यह)[^।!?\n]{0,20} (?:मेरे|मेरी|हमारे|हमारी) [^।!?\n]{0,25}(?:खिलाफ|ख\u093cिलाफ|"
        r"विरुद्ध)",
    ),
    "zh": by_script(
        r"[\u4e00-\u9fff]",
        r"(?:对不起|對不起|抱歉|很遗憾|很遺憾|不好意思|遗憾)[^。！？!?\n]{0,30}(?:不能|无法|無法|不可以|没办法|"
        r"沒辦法|不会(?:协助|帮|提供|参与)|拒绝|拒絕|"
        r"不便|不提供|不適合|不适合|恕)",
        r"(?:我(?:们|們)?|恕|本人|小助手|作为[^。！？\n]{2,20}[,，]?)(?:真的|不得不|必须|必須|并|並|目前|实在|"
        r"實在|也|是|都|恕)?(?:不能|无法|無法|不可以|"
        r"不会|不會|不便|没有办法|没办法|沒辦法|拒绝|拒絕|不应该|不該)(?:直接|在此|继续|繼續|就此)?(?:为您|"
        r"为你|為您|為你|給你|给您|给你|向您|向你|对此|就)?"
        r"(?:协助|協助|帮|幫|提供|回答|满足|滿足|完成|支持|参与|參與|讨论|討論|执行|執行|回应|回應|處理|处理|"
        r"生成|编写|撰写|撰寫|创作|創作|給|给|教|"
        r"告诉|告訴|这(?:样|么)|做(?:这|那)|透露|配合|评论|接受|。|$)",
        r"(?:^|[，,。\s])(?:无法|不能|無法)(?:为您|为你)?(?:满足|滿足|协助|提供|回答|完成|处理|帮助|協助)(?:您|"
        r"你|这个请求|此类|该请求|这方面|这类|相关)",
        r"(?:这|這|该|此|您的|你的)[^。！？\n]{0,10}(?:违反|違反|违背|違背)了?(?:我|我们|我們|使用|相关|"
        r"OpenAI)[^。！？\n]{0,4}(?:的)?[^。！？\n]{0,6}(?:准则|準則|"
        r"原则|原則|政策|规定|規定|规范|規範)",
        r"(?:我们|我們|让我们|咱们)(?:还是|還是|来|來)?(?:换个|換個|换一个|换)话?(?:话题|話題|题)|(?:聊|谈|"
        r"談)(?:点|點|些)别的",
    ),
    "ja": by_script(
        r"[\u3040-\u30ff]",
        r"(?:申し訳|すみません|ごめんなさい|恐れ入りますが|恐縮ですが|残念ながら|"
        r"あいにく)[^。！？!?\n]{0,90}?(?:でき(?:ません|かねます|ない)|出来ません|いたしかねます|"
        r"お答えできません|答えられません|お断り|致しかねます|控え|しかねます|応じられません)",
        r"(?:お手伝い|お答え|お応え|お教え|ご案内|ご提供|ご協力|ご支援|ご要望|ご質問|お力|ご紹介|"
        r"ご説明)(?:する|を|に|には)?(?:こと)?(?:は|が|お)?(?:答え|応え|応じ|沿う)?(?:でき(?:ません|"
        r"かねます|ない)|出来ません|いたしかねます|致しかねます|しかねます|お断り|られません|れません|"
        r"ることはできません|になれません)",
        r"(?:リクエスト|要求|要望|質問|依頼|情報|方法|内容|行為|違法|そのような|このような|それ|その件|この件|"
        r"作り方|指示|私は|AI|ＡＩ|ai)[^。！？!?\n]{0,24}?(?:お答え|"
        r"提供|協力|回答|対応|支援|案内|作成|教え|応じ|答え|手伝|説明|お断り|拒否|書く|手助け|助長|参加|"
        r"従う)[^。！？!?\n]{0,12}?(?:でき(?:ません|かねます|ない)|"
        r"出来ません|いたしかねます|しかねます|られません|控え|いたします|します)(?<!(?:明|応|供|答|力|援|内|"
        r"成)します)(?<!(?:明|応|供|答|力|援|内|成)いたします)",
        r"(?:回答|返答|コメント|発言|お答え|説明)(?:は|を)?(?:差し)?控え",
        r"(?:依頼|要求|リクエスト|質問|要望|お話)(?:は|を|には)?[^。！？\n]{0,6}(?:お断り|拒否)(?:し|いたし|させ)",
        r"(?:私の|当社の|弊社の)?(?:ガイドライン|ポリシー|方針|規約|原則)に(?:違反|反し)",
        r"別の(?:話題|話)(?:に|を)",
    ),
    "ko": by_script(
        r"[\uac00-\ud7a3]",
        r"(?:죄송|미안|유감|안타깝)[^.!?\n]{0,60}(?:도와|도움|제공|답변|응답|대답|지원|수행|설명|알려|알려줄|"
        r"협조|작성|응할|들어|말씀|안내|공유|처리|해)[^.!?\n]{0,14}"
        r"(?:수(?:가|는)? 없|못 ?합|못 ?해|드리지 못|않|어렵|불가|힘들)",
        r"(?:죄송|미안|유감|안타깝)[^.!?\n]{0,60}(?:거절|거부|불가능|응할 수 없|수 없습니다|수 없어요)",
        r"(?:도와드릴|도와 드릴|도와줄|도움을 (?:드릴|줄)|도움 ?드릴|답변(?:해 )?드릴|답변을 (?:드릴|할)|"
        r"답변할|알려드릴|알려 ?줄|알려 드릴|말씀드릴|안내해 드릴|안내해드릴|"
        r"들어드릴|들어줄|도울|대답할|대답해 ?드릴|응할|협조할)[^.!?\n]{0,4}수(?:가|는)? 없",
        r"(?:요청|질문|부탁|정보|방법|내용|그런|그러한|이런|이러한|해당|저는|제가|행위)[^.!?\n]{0,30}(?:제공|"
        r"지원|수행|설명|작성|공유|처리|생성|답변|대답|참여)"
        r"(?:해 ?드릴|을 드릴|할|드릴|하)?[^.!?\n]{0,4}(?:수(?:가|는)? 없|지 않(?:습니다|아요|겠)|지 못|기 어렵)",
        r"(?:도움을|도와|답변을|답변)[^.!?\n]{0,6}(?:드리기|주기|하기)(?:가|는)? (?:어렵|힘들)",
        r"(?:요청|질문|부탁|그것|그건|제안|그)(?:은|는|을|를|에|에는)?[^.!?\n]{0,10}(?:거절|거부)(?:하겠|"
        r"합니다|해야|할게|드립)",
        r"(?:요청|질문|부탁|이것|이는|그것)[^.!?\n]{0,12}(?:제|저의|우리|내)[^.!?\n]{0,10}(?:위반|어긋|위배)",
        r"다른 (?:주제|이야기|얘기)(?:로|를|에)?[^.!?\n]{0,8}(?:합시다|해요|할까요|바꿔|나눠)",
    ),
}

LATIN_WORDS = frozenset().union(*(found.words for found in LANGUAGES.values()))

SOFT = re.compile(
    unicodedata.normalize(
        "NFC",
        r"medizinisch|ärztlich|rechtlich|juristisch|echtzeit|diagnos|médica|médico|juridi|jurídic|temps réel|"
        r"tiempo real|"
        r"tempo reale?|consiglio medico|parere medico|conselho médico|medisch|juridisch|actuele|медицинск|юридическ|"
        r"диагноз|реального времени|医疗建议|医学建议|法律建议|诊断|实时|實時|医学的|診断|リアルタイム|"
        r"法的助言|의료|의학|진단|실시간|법률 자문|"
        r"طبية|قانونية|تشخيص|الوقت الفعلي|चिकित्सा|चिकित्सीय|कानूनी सलाह|tıbbi|hukuki|teşhis|gerçek zamanlı",
    )
)
"""A refusal of professional advice or of news alone: an answer beside it makes it a mere disclaimer."""

STORY = re.compile(
    unicodedata.normalize(
        "NFC",
        r"geschichte|gedicht|dialog|brief|erzähl|histoire|poème|lettre|cuento|poema|historia|carta|storia|"
        r"poesia|lettera|"
        r"história|verhaal|gedicht|рассказ|стих|сказк|письмо|故事|诗|詩|小说|小說|对话|邮件|物語|小説|手紙|"
        r"이야기|편지|소설|قصة|قصيدة|رسالة|"
        r"hikâye|hikaye|şiir|mektup|कहानी|कविता|पत्र",
    )
)
"""A prompt that asks for a story or a letter: what its people say is no refusal of the model's."""
