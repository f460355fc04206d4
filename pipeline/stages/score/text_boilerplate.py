"""Captions that say nothing of the picture, by an explicit table: names of files, `image`, `click here`.

    boilerplate("IMG_1234.jpg")             "file_name"
    boilerplate("a dog in the snow")        None

A caption is boilerplate only as a whole: `photo of a dog` is none. Compared without regard to capital letters
and to white space and punctuation around it. The table is for what alt texts of many sites share; what is
rare, or could be the right words for some picture (`sunset`, `Nike logo`), is not in it.
"""

from __future__ import annotations

import re
import unicodedata

#: longer texts are not looked at, but for addresses: they say more than these
MAX_CHARS = 100
#: what is still taken for a single address
MAX_URL_CHARS = 4000


def _words(table: str) -> frozenset[str]:
    return frozenset(word.strip() for line in table.splitlines() for word in line.split("|") if word.strip())


#: the names of things that every page has, in the languages of most pages
PLACEHOLDERS = _words("""
    image|images|picture|pictures|pic|pics|photo|photos|photograph|photography|img|graphic|graphics
    illustration|figure|fig|icon|logo|banner|thumbnail|thumb|avatar|slide|slider|gallery|cover|poster|preview
    screenshot|alt|alt text|alternative text|caption|title|untitled|unnamed|default|placeholder|spacer|blank
    empty|pixel|null|none|nil|undefined|nan|n/a|na|unknown|true|false|test|object object|file|attachment|media
    video|gif|jpg|no image|no photo|no picture|no image available|image not available|image not found
    no alt text|image coming soon|photo coming soon|missing image|broken image|loading|please wait|lazyload
    profile picture|profile photo|profile image|user avatar|user image|author image|company logo|site logo
    website logo|our logo|header image|header logo|footer logo|background|background image|featured image
    product image|product photo|post image|blog image|article image|main image|hero image|cover image
    stock photo|item image|image for|picture of|photo of|image of|thumbnail for|thumbnail image
    advertisement|ad|ads|sponsored
    bild|bilder|foto|fotos|abbildung|grafik|vorschaubild|kein bild|kein bild vorhanden|produktbild|titelbild
    imagen|imágenes|fotografía|imagen del producto|sin imagen|ilustración
    imagem|imagens|sem imagem|fotografia|immagine|immagini|nessuna immagine
    photo du produit|image du produit|pas d'image|aucune image|vignette
    afbeelding|afbeeldingen|plaatje|geen afbeelding
    obrázek|obraz|zdjęcie|brak zdjęcia|snímek|kép|fénykép|slika|fotografija|poza|imagine|imagini
    kuva|valokuva|billede|billeder|bilde|resim|fotoğraf|görsel
    изображение|картинка|фото|фотография|рисунок|нет фото|логотип|зображення|фотографія|снимка
    εικόνα|φωτογραφία|תמונה|صورة|صور|عکس|تصویر|चित्र|फोटो|gambar|ảnh|hình ảnh|hình|รูปภาพ|ภาพ|รูป
    画像|写真|イメージ|アイコン|ロゴ|サムネイル
    图片|圖片|图像|圖像|照片|图|圖|缩略图|头像|이미지|사진|그림|로고
""")

#: what a button says, not what a picture shows
ACTIONS = _words("""
    click here|click|click me|click to enlarge|click to zoom|click to view|click for more|click to expand
    click image to enlarge|click to view larger image|click for larger image|tap to zoom|zoom|zoom in
    enlarge|enlarge image|view|view image|view larger|view larger image|view full size|view more|view all
    view details|view product|see more|see all|see details|show more|show all|read more|read article
    continue reading|learn more|more|more info|more information|find out more|details|download|download now
    play|play video|watch|watch now|watch video|pause|next|previous|prev|back|forward|up|down|left|right|top
    back to top|close|open|menu|search|home|homepage|submit|go|print|email|e-mail|mail|share|share this
    tweet|pin it|like|follow|follow us|subscribe|sign up|sign in|log in|login|logout|register|contact
    contact us|about|about us|help|add to cart|buy|buy now|shop now|order now|get started|start now
    open in new window|skip to content|arrow|left arrow|right arrow|down arrow|up arrow
    hier klicken|klicken sie hier|mehr|mehr lesen|weiterlesen|mehr erfahren|vergrößern|bild vergrößern
    zum vergrößern klicken|weiter|zurück|suche|startseite|herunterladen|jetzt kaufen
    cliquez ici|lire la suite|en savoir plus|voir plus|agrandir|suivant|précédent|rechercher|accueil
    télécharger|haga clic aquí|clic aquí|leer más|ver más|saber más|más información|ampliar|siguiente
    anterior|buscar|inicio|clique aqui|leia mais|saiba mais|ver mais|ampliar imagem|próximo
    clicca qui|leggi tutto|leggi di più|scopri di più|ingrandisci|successivo|precedente
    klik hier|lees meer|meer informatie|volgende|vorige|zoeken|kliknij tutaj|czytaj więcej|więcej
    подробнее|читать далее|далее|назад|увеличить|скачать|нажмите здесь|tıklayın|devamını oku
    もっと見る|続きを読む|詳細|詳細を見る|クリック|拡大|次へ|前へ|戻る
    点击查看|点击这里|查看更多|更多|阅读更多|下载|下一页|返回|더보기|자세히 보기|클릭|다운로드|다음|이전
""")

_SITES = (
    "facebook|twitter|instagram|youtube|linkedin|pinterest|tiktok|whatsapp|telegram|snapchat|reddit|tumblr|rss"
    "|vimeo|flickr|google|google play|app store|paypal|visa|mastercard|american express|vk|weibo|wechat|skype"
)
_MONTHS = (
    "jan(uary|uar|vier|eiro)?|feb(ruary|ruar)?|f[ée]v(rier|ereiro)?|mar(ch|s|zo|ço)?|märz|apr(il|ile)?"
    "|avr(il)?|abr(il)?|may|mai|mayo|maio|maggio|mei|jun[ei]?|juin|junio|junho|giugno|jul[iy]?|juillet|julio"
    "|julho|luglio|aug(ust|ustus)?|août|ago(sto)?|sep(t|tember|tembre|tiembre)?|setembro|settembre"
    "|oct(ober|obre|ubre)?|okt(ober)?|outubro|ottobre|nov(ember|embre|iembre|embro)?|de[cz](ember|embre|embro)?"
    "|déc(embre)?|dic(iembre|embre)?|enero|febrero|gennaio|febbraio"
)
_DAYS = "(mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?|sun)(day)?|(mon|diens|donners|frei|sams|sonn)tag|mittwoch"
_NTH = r"\d{1,2}(st|nd|rd|th|\.)?"
_ENDINGS = "jpe?g|jfif|png|gif|webp|bmp|svg|tiff?|heic|avif|ico|psd|raw|cr2|nef|pdf|mp4|mov"
_DOMAINS = r"com|net|org|info|biz|edu|gov|io|co|de|fr|es|it|nl|pl|ru|uk|co\.uk|jp|cn|com\.br|eu"
_CAMERAS = (
    "img|dsc[fn]?|dscn|pict?|pxl|mvi|vid|gopr|dji|wp|imag|sam|cimg|hpim|kodak|scan|cam|fb_img|image|photo"
    "|picture|foto|bild|imagen|screenshot|screen shot|bildschirmfoto|captura( de pantalla)?|capture"
    "|whatsapp image"
)
_NUMBERED = (
    r"image|picture|photo|slide|figure|fig\.?|thumbnail|thumb|page|item|gallery image|product image|bild|foto"
    r"|imagen|imagem|immagine|afbeelding|фото|рис\.?|изображение|図|图|圖"
)

#: reason -> pattern that the whole text matches, in this order
PATTERNS: dict[str, re.Pattern[str]] = {
    # an address in place of a text
    "address": re.compile(
        rf"(https?://|www\.|//)\S+|[\w.+-]+@[\w-]+(\.[\w-]+)+|[a-z0-9][a-z0-9.-]*\.({_DOMAINS})(/\S*)?"
    ),
    # the name of the file, which the editor put there
    "file_name": re.compile(rf"[^\n]*\.({_ENDINGS})"),
    # its place in a row of pictures
    "numbered": re.compile(
        rf"({_NUMBERED})[ #_.-]*(no\.? ?|nr\.? ?)?\d{{1,3}}( ?(of|/|von|de|di|van|из) ?\d+)?"
    ),
    # the camera's or phone's name of the file, its ending removed
    "camera_name": re.compile(
        rf"_?({_CAMERAS})[ _-]*\d[\d _.-]*"
        r"(at [\d.: _-]+|um [\d. _-]+|wa\d+|[ap]m|e\d+|copy|edited|scaled|\(\d+\))*[a-z]?"
        r"|p\d{6,8}|(untitled|unnamed|download|image|picture|photo|unbenannt|ohne titel)[ _-]*\(?\d+\)?"
    ),
    # the mark of a site, of which every page has a few
    "site": re.compile(
        rf"((follow us|share|like us|find us) on )?({_SITES})( (icon|logo|button|share|page))?"
    ),
    # when, not what
    "date": re.compile(
        rf"(({_DAYS})\.?,? )?(({_NTH} (de )?)?({_MONTHS})\.?,? (de )?({_NTH},? )?\d{{4}}"
        rf"|{_NTH} ({_MONTHS})|({_MONTHS}) {_NTH})"
    ),
    # an identifier
    "hash": re.compile(r"[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    # the template was not filled in
    "template": re.compile(r"\{\{.*\}\}|\$\{.*\}|\{%.*%\}|%%?\w+%%?|\[\w[\w :-]*\]|<[^<>]+>"),
}
#: those that may have punctuation around them
_LOOSE = ("numbered", "site", "date")
_EDGES = " \t\r\n\u00a0\u3000.,:;!?…·•*-–—_|/\\\"'«»“”‘’‹›<>→←()[]{}=+~#"

NO_LETTERS, PLACEHOLDER, ACTION = "no_letters", "placeholder", "action"


def boilerplate(text: str) -> str | None:
    """Why a text says nothing of its picture; None where it may. The reasons are the keys of PATTERNS, and
    `no_letters` (digits, a price, stars, nothing), `placeholder`, `action`."""
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    if not any(map(str.isalpha, plain)):
        return NO_LETTERS
    if len(plain) <= MAX_URL_CHARS and PATTERNS["address"].fullmatch(plain):
        return "address"
    if len(plain) > MAX_CHARS:
        return None
    core = plain.strip(_EDGES)
    if core in PLACEHOLDERS:
        return PLACEHOLDER
    if core in ACTIONS:
        return ACTION
    for reason, pattern in PATTERNS.items():
        if pattern.fullmatch(plain) or (reason in _LOOSE and pattern.fullmatch(core)):
            return reason
    return None
