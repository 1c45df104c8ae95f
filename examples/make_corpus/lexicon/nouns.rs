//! Nouns by meaning, and the verbs that go with each meaning.

/// The meaning of a noun, as far as it determines which adjectives and verbs go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Animal,
    Person,
    Thing,
    Place,
    Food,
}

use Class::{Animal as A, Food as F, Person as P, Place as L, Thing as T};

impl Class {
    pub const ALL: [Class; 5] = [A, P, T, L, F];

    pub fn nouns(self) -> &'static [[&'static str; 4]; ROWS] {
        match self {
            A => &ANIMALS,
            P => &PEOPLE,
            T => &THINGS,
            L => &PLACES,
            F => &FOODS,
        }
    }

    /// What someone did to it: "o livro que a menina comprou".
    pub fn relative_verbs(self) -> &'static [[&'static str; 2]] {
        match self {
            A => &[["viu", "viram"], ["encontrou", "encontraram"], ["alimentou", "alimentaram"], ["levou", "levaram"]],
            P => &[["viu", "viram"], ["encontrou", "encontraram"], ["ajudou", "ajudaram"], ["convidou", "convidaram"]],
            T => &[["viu", "viram"], ["comprou", "compraram"], ["guardou", "guardaram"], ["ganhou", "ganharam"]],
            L => &[["viu", "viram"], ["visitou", "visitaram"], ["desenhou", "desenharam"], ["filmou", "filmaram"]],
            F => {
                &[["comprou", "compraram"], ["preparou", "prepararam"], ["provou", "provaram"], ["trouxe", "trouxeram"]]
            }
        }
    }

    /// What it did, with the adverbs and phrases that go with the verb.
    pub fn activities(self) -> &'static [([&'static str; 2], &'static [&'static str])] {
        match self {
            A => &[
                (["correu", "correram"], &["rapidamente", "velozmente", "pelo quintal"]),
                (["dormiu", "dormiram"], &["tranquilamente", "profundamente", "na varanda"]),
                (["comeu", "comeram"], &["vorazmente", "lentamente", "no quintal"]),
                (["fugiu", "fugiram"], &["rapidamente", "de madrugada", "pelo portão"]),
            ],
            P => &[
                (["cantou", "cantaram"], &["alegremente", "suavemente", "na festa"]),
                (["falou", "falaram"], &["calmamente", "claramente", "com todos"]),
                (["sorriu", "sorriram"], &["discretamente", "alegremente", "para todos"]),
                (["trabalhou", "trabalharam"], &["intensamente", "demais", "no domingo"]),
            ],
            T => &[
                (["sumiu", "sumiram"], &["misteriosamente", "ontem", "de repente"]),
                (["ficou", "ficaram"], &["na sala", "no quarto", "em casa"]),
                (["veio", "vieram"], &["de longe", "da capital", "do exterior"]),
                (["chamou", "chamaram"], &["atenção", "minha atenção"]),
            ],
            L => &[
                (["fica", "ficam"], &["no centro", "longe daqui", "à beira do rio"]),
                (["aparece", "aparecem"], &["no filme", "na novela", "no cartaz"]),
                (["recebe", "recebem"], &["turistas", "visitas diariamente"]),
                (["atraiu", "atraíram"], &["turistas", "gente de longe"]),
            ],
            F => &[
                (["acabou", "acabaram"], &["rapidamente", "cedo", "em minutos"]),
                (["sobrou", "sobraram"], &["na festa", "ontem", "no jantar"]),
                (["veio", "vieram"], &["da feira", "da cozinha", "de longe"]),
                (["agradou", "agradaram"], &["imediatamente", "a todos"]),
            ],
        }
    }
}

/// Nouns of one class. A row is one index of the split: if the two genders are one lemma (gato, gata), they share it.
pub const ROWS: usize = 12;

const ANIMALS: [[&str; 4]; ROWS] = [
    ["gato", "gata", "gatos", "gatas"],
    ["cachorro", "cachorra", "cachorros", "cachorras"],
    ["cavalo", "égua", "cavalos", "éguas"],
    ["boi", "vaca", "bois", "vacas"],
    ["bode", "cabra", "bodes", "cabras"],
    ["galo", "galinha", "galos", "galinhas"],
    ["pato", "pata", "patos", "patas"],
    ["coelho", "coelha", "coelhos", "coelhas"],
    ["carneiro", "ovelha", "carneiros", "ovelhas"],
    ["animal", "ave", "animais", "aves"],
    ["burro", "mula", "burros", "mulas"],
    ["hamster", "lebre", "hamsters", "lebres"],
];

const PEOPLE: [[&str; 4]; ROWS] = [
    ["menino", "menina", "meninos", "meninas"],
    ["professor", "professora", "professores", "professoras"],
    ["vizinho", "vizinha", "vizinhos", "vizinhas"],
    ["médico", "médica", "médicos", "médicas"],
    ["ator", "atriz", "atores", "atrizes"],
    ["irmão", "irmã", "irmãos", "irmãs"],
    ["homem", "mulher", "homens", "mulheres"],
    ["cantor", "cantora", "cantores", "cantoras"],
    ["primo", "prima", "primos", "primas"],
    ["rapaz", "moça", "rapazes", "moças"],
    ["cozinheiro", "cozinheira", "cozinheiros", "cozinheiras"],
    ["padre", "freira", "padres", "freiras"],
];

const THINGS: [[&str; 4]; ROWS] = [
    ["livro", "caneta", "livros", "canetas"],
    ["carro", "moto", "carros", "motos"],
    ["mapa", "foto", "mapas", "fotos"],
    ["relógio", "chave", "relógios", "chaves"],
    ["tapete", "mesa", "tapetes", "mesas"],
    ["papel", "colher", "papéis", "colheres"],
    ["anel", "televisão", "anéis", "televisões"],
    ["violão", "estante", "violões", "estantes"],
    ["telefone", "imagem", "telefones", "imagens"],
    ["sofá", "cadeira", "sofás", "cadeiras"],
    ["espelho", "rede", "espelhos", "redes"],
    ["pente", "mala", "pentes", "malas"],
];

/// The first rows of the places are outdoors: where animals come back from.
pub const OUTDOORS: usize = 3;

const PLACES: [[&str; 4]; ROWS] = [
    ["parque", "praça", "parques", "praças"],
    ["jardim", "fazenda", "jardins", "fazendas"],
    ["mercado", "ponte", "mercados", "pontes"],
    ["museu", "escola", "museus", "escolas"],
    ["hospital", "capela", "hospitais", "capelas"],
    ["hotel", "torre", "hotéis", "torres"],
    ["teatro", "estação", "teatros", "estações"],
    ["castelo", "loja", "castelos", "lojas"],
    ["prédio", "catedral", "prédios", "catedrais"],
    ["bar", "igreja", "bares", "igrejas"],
    ["salão", "biblioteca", "salões", "bibliotecas"],
    ["cinema", "creche", "cinemas", "creches"],
];

const FOODS: [[&str; 4]; ROWS] = [
    ["bolo", "sopa", "bolos", "sopas"],
    ["pão", "torta", "pães", "tortas"],
    ["queijo", "salada", "queijos", "saladas"],
    ["café", "carne", "cafés", "carnes"],
    ["suco", "maçã", "sucos", "maçãs"],
    ["chocolate", "laranja", "chocolates", "laranjas"],
    ["molho", "pizza", "molhos", "pizzas"],
    ["pastel", "noz", "pastéis", "nozes"],
    ["feijão", "couve", "feijões", "couves"],
    ["pudim", "geleia", "pudins", "geleias"],
    ["sorvete", "massa", "sorvetes", "massas"],
    ["peixe", "batata", "peixes", "batatas"],
];
