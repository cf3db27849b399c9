//! The books of all payments: what everybody had, paid and got, in millisatoshi.
//!
//! What always holds: every payment has one payer and one payee, its fee goes to the LSP, and what
//! somebody says to have afterwards is what these add up to, to the millisatoshi.

/// Who has money in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The member of this slot order.
    Member(usize),
    /// The ordinary node.
    Outside,
    /// The LSP, over all of its channels.
    Lsp,
}

/// One payment that arrived.
#[derive(Clone, Debug)]
pub struct Paid {
    /// Who paid.
    pub from: Party,
    /// Who got it.
    pub to: Party,
    /// What arrived.
    pub amount_msat: u64,
    /// What the payer paid beside it, by its own word.
    pub fee_msat: u64,
}

/// What somebody says to have.
#[derive(Clone, Debug)]
pub struct Held {
    /// Who.
    pub party: Party,
    /// Before the first payment.
    pub before_msat: u64,
    /// After the last.
    pub after_msat: u64,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// In order.
    pub payments: Vec<Paid>,
    /// Everybody.
    pub held: Vec<Held>,
}

/// What does not add up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{party:?} says to have {said_msat} msat, the payments make it {computed_msat}")]
pub struct BooksError {
    /// Who.
    pub party: Party,
    /// By its own word.
    pub said_msat: u64,
    /// By the payments.
    pub computed_msat: i128,
}

impl Books {
    /// Adds everything up.
    ///
    /// # Errors
    /// [`BooksError`] for the first party whose word differs by a millisatoshi.
    pub fn check(&self) -> Result<(), BooksError> {
        for held in &self.held {
            let flows = self.payments.iter().map(|it| it.flow(held.party));
            let computed_msat = i128::from(held.before_msat) + flows.sum::<i128>();
            if computed_msat != i128::from(held.after_msat) {
                return Err(BooksError {
                    party: held.party,
                    said_msat: held.after_msat,
                    computed_msat,
                });
            }
        }
        Ok(())
    }

    /// All routing fees.
    pub fn fees_msat(&self) -> u64 {
        self.payments.iter().map(|it| it.fee_msat).sum()
    }
}

impl Paid {
    /// What it adds to what this party has, in millisatoshi.
    pub fn flow(&self, party: Party) -> i128 {
        let (amount, fee) = (i128::from(self.amount_msat), i128::from(self.fee_msat));
        let is = |other: Party| i128::from(party == other);
        is(self.to) * amount - is(self.from) * (amount + fee) + is(Party::Lsp) * fee
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> Books {
        let paid = |from, to, amount_msat| Paid {
            from,
            to,
            amount_msat,
            fee_msat: 1_001,
        };
        let held = |party, before_msat, after_msat| Held {
            party,
            before_msat,
            after_msat,
        };
        Books {
            payments: vec![
                paid(Party::Outside, Party::Member(0), 50_000),
                paid(Party::Member(0), Party::Member(1), 20_003),
            ],
            held: vec![
                held(Party::Outside, 100_000, 48_999),
                held(Party::Member(0), 0, 28_996),
                held(Party::Member(1), 0, 20_003),
                held(Party::Lsp, 7, 2_009),
            ],
        }
    }

    #[test]
    fn books_that_balance_are_taken() {
        assert_eq!(books().check(), Ok(()));
        assert_eq!(books().fees_msat(), 2_002);
    }

    #[test]
    fn one_millisatoshi_is_missed() {
        for index in 0..4 {
            let mut wrong = books();
            wrong.held[index].after_msat += 1;
            assert_eq!(wrong.check().unwrap_err().party, wrong.held[index].party);
        }
        let mut wrong = books();
        wrong.payments[1].fee_msat -= 1;
        assert!(wrong.check().is_err());
    }
}
