"""Sentences for the pages in languages other than English."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tongue:
    """One language: its own name, a page title, a greeting, a word for "picture"."""

    label: str
    title: str
    intro: str
    picture: str


TONGUES: dict[str, Tongue] = {
    "ar": Tongue("العربية", "معرض الصور", "هنا ترى صورا صغيرة وأسماءها.", "صورة"),
    "de": Tongue(
        "Deutsch",
        "Bildergalerie",
        "Hier sehen Sie kleine Bilder und ihre Namen; für Größe und Farbe übernehmen"
        " wir keine Gewähr.",
        "Bild",
    ),
    "es": Tongue(
        "Español",
        "Galería de imágenes",
        "Aquí puede ver imágenes pequeñas con sus nombres en español.",
        "imagen",
    ),
    "fa": Tongue(
        "فارسی", "گالری تصاویر", "در اینجا تصاویر کوچک و نام آنها را می‌بینید.", "تصویر"
    ),
    "fr": Tongue(
        "Français",
        "Galerie d’images",
        "Vous trouverez ici de petites images et leurs noms en français.",
        "image",
    ),
    "id": Tongue(
        "Bahasa Indonesia",
        "Galeri gambar",
        "Di sini Anda melihat gambar-gambar kecil beserta namanya.",
        "gambar",
    ),
    "it": Tongue(
        "Italiano",
        "Galleria di immagini",
        "Qui trovate piccole immagini con i loro nomi in italiano.",
        "immagine",
    ),
    "ja": Tongue(
        "日本語",
        "画像ギャラリー",
        "ここでは小さな絵とその名前を見ることができます。",
        "画像",
    ),
    "ko": Tongue(
        "한국어", "그림 모음", "여기에서 작은 그림과 그 이름을 볼 수 있습니다.", "그림"
    ),
    "pt": Tongue(
        "Português",
        "Galeria de imagens",
        "Aqui você vê pequenas imagens e os seus nomes em português.",
        "imagem",
    ),
    "ru": Tongue(
        "Русский",
        "Галерея картинок",
        "Здесь вы видите маленькие картинки и их названия.",
        "картинка",
    ),
    "tr": Tongue(
        "Türkçe",
        "Resim galerisi",
        "Burada küçük resimleri ve onların adlarını görebilirsiniz.",
        "resim",
    ),
    "zh": Tongue("中文", "图片库", "这里可以看到小图片和它们的名称。", "图片"),
}
